//! Containers for scenarios: a root folder with a program in it, and ways to run it there: chroot in namespaces and a
//! control group of its own, a bundle under runc, an image under podman. No network, no registry.
#![expect(clippy::indexing_slicing, reason = "a key that JSON lacks is null, or made")]
use crate::fixture::Fixture;
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

/// Limits that a container may have wherever the tests run: a higher one than this process's own cannot be set.
const LIMITS: [&str; 4] = ["--ulimit", "nofile=256:256", "--ulimit", "nproc=256:256"];

/// A name that no other test uses.
pub fn name(what: &str) -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    format!("leaktrace-{what}-{}-{number}", std::process::id())
}

/// A folder that holds one program as `/app` and the libraries it needs. Everything that is made goes with it.
#[derive(Debug)]
pub struct Root(tempfile::TempDir);

impl Root {
    /// For this program.
    pub fn of(program: &Path) -> Result<Root> {
        let root = Root(tempfile::Builder::new().prefix("root-").tempdir().context("no temporary folder")?);
        for folder in ["proc", "dev", "sys", "tmp", "etc"] {
            fs::create_dir(root.path().join(folder))?;
        }
        fs::copy(program, root.path().join("app"))
            .with_context(|| format!("cannot copy {}", program.display()))?;
        for library in libraries(program)? {
            let to = root.path().join(library.strip_prefix("/").unwrap_or(&library));
            fs::create_dir_all(to.parent().context("a library without a folder")?)?;
            fs::copy(&library, &to).with_context(|| format!("cannot copy {}", library.display()))?;
        }
        // Namespaces of users map root to somebody else, who must be able to pass.
        run(Command::new("chmod").args(["-R", "a+rX"]).arg(root.path()))?;
        Ok(root)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

/// The libraries that the dynamic linker would load; none for a static program.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let headers = run(Command::new("readelf").arg("--program-headers").arg(program))?;
    let interpreter =
        headers.split_once("program interpreter: ").and_then(|(_, rest)| rest.split(']').next());
    match interpreter {
        None => return Ok(Vec::new()),
        // musl's linker is its C library, and ldd is the other one's.
        Some(path) if path.contains("ld-musl") => return Ok(vec![PathBuf::from(path)]),
        Some(_) => {}
    }
    let said = Command::new("ldd").arg(program).output().context("cannot run ldd")?;
    let text = String::from_utf8_lossy(&said.stdout).into_owned();
    let words = text.split_ascii_whitespace().filter(|word| word.starts_with('/'));
    Ok(words.map(PathBuf::from).collect())
}

/// Runs a command that must end well; what it printed.
pub fn run(command: &mut Command) -> Result<String> {
    let said =
        command.output().with_context(|| format!("cannot run {command:?}: `cargo xtask setup --tests`"))?;
    if !said.status.success() {
        bail!("{command:?} failed: {}", String::from_utf8_lossy(&said.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&said.stdout).trim().to_owned())
}

/// A control group of its own, in the version 2 hierarchy. Removed when this is dropped.
#[derive(Debug)]
pub struct Group(PathBuf);

impl Group {
    /// Makes one.
    pub fn new(what: &str) -> Result<Group> {
        let unified = Path::new("/sys/fs/cgroup/unified");
        let top = if unified.join("cgroup.procs").exists() { unified } else { Path::new("/sys/fs/cgroup") };
        ensure!(
            top.join("cgroup.procs").exists(),
            "no version 2 control groups are mounted in /sys/fs/cgroup"
        );
        let path = top.join(name(what));
        fs::create_dir(&path).with_context(|| format!("cannot make the control group {}", path.display()))?;
        Ok(Group(path))
    }

    /// Makes one beneath it.
    pub fn beneath(&self, what: &str) -> Result<Group> {
        let path = self.0.join(name(what));
        fs::create_dir(&path).with_context(|| format!("cannot make the control group {}", path.display()))?;
        Ok(Group(path))
    }

    /// Its folder.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Runs a program in it, in namespaces of its own, in `root`.
    pub fn chroot(&self, root: &Root, own_users: bool) -> Result<Fixture> {
        let users = if own_users { "--user --map-root-user" } else { "" };
        let script = format!(
            "echo $$ > {}/cgroup.procs && exec unshare {users} --mount --uts --ipc --net --pid --fork chroot {} /app",
            self.0.display(),
            root.path().display()
        );
        let mut command = Command::new("sh");
        command.args(["-c", &script]);
        Fixture::spawn(command)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let gone = || fs::remove_dir(&self.0).is_ok() || !self.0.exists();
        for _ in 0..100 {
            if gone() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }
}

/// A bundle for runc, with a container of its name. Deleted when this is dropped.
#[derive(Debug)]
pub struct Bundle {
    folder: tempfile::TempDir,
    _root: Root,
    name: String,
}

impl Bundle {
    /// Writes a configuration that runs `/app` in the root; `memory_bytes` is its limit, if it is to have one.
    pub fn new(what: &str, root: Root, memory_bytes: Option<u64>, own_users: bool) -> Result<Bundle> {
        let folder = tempfile::Builder::new().prefix("bundle-").tempdir().context("no temporary folder")?;
        run(Command::new("runc").arg("spec").current_dir(folder.path()))?;
        let path = folder.path().join("config.json");
        let mut config: Value = serde_json::from_str(&fs::read_to_string(&path)?)?;
        config["root"] = json!({ "path": root.path(), "readonly": false });
        config["process"]["args"] = json!(["/app"]);
        config["process"]["terminal"] = json!(false);
        config["process"]["cwd"] = json!("/");
        config["process"]["rlimits"] = json!([]);
        config["mounts"] = json!([
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs" },
        ]);
        if let Some(limit) = memory_bytes {
            config["linux"]["resources"]["memory"] = json!({ "limit": limit, "swap": limit });
        }
        if own_users {
            let map = json!([{ "containerID": 0, "hostID": 100_000, "size": 65_536 }]);
            config["linux"]["uidMappings"] = map.clone();
            config["linux"]["gidMappings"] = map;
            let namespaces = config["linux"]["namespaces"].as_array_mut().context("no namespaces")?;
            namespaces.push(json!({ "type": "user" }));
        }
        fs::write(&path, config.to_string())?;
        run(Command::new("chmod").arg("a+rx").arg(folder.path()))?;
        Ok(Bundle { folder, _root: root, name: name(what) })
    }

    /// The container's id.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs it; does not wait.
    pub fn start(&self) -> Result<Fixture> {
        let mut command = Command::new("runc");
        command.arg("run").arg("--bundle").arg(self.folder.path()).arg(&self.name);
        Fixture::spawn(command)
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        let mut command = Command::new("runc");
        command.args(["delete", "--force", &self.name]).stdout(Stdio::null()).stderr(Stdio::null());
        let _ = command.status();
    }
}

/// An image under podman. Removed, with its containers, when this is dropped.
#[derive(Debug)]
pub struct Image(String);

impl Image {
    /// Made of a root folder.
    pub fn of(what: &str, root: &Root) -> Result<Image> {
        let tag = format!("localhost/{}:test", name(what));
        let script = format!("tar -C {} -c . | podman import --quiet - {tag}", root.path().display());
        run(Command::new("sh").args(["-c", &script]))?;
        Ok(Image(tag))
    }

    /// Built by a Dockerfile from the files in `context`, with these arguments. It must not need a registry.
    pub fn build(what: &str, dockerfile: &Path, context: &Path, arguments: &[(&str, &str)]) -> Result<Image> {
        let tag = format!("localhost/{}:test", name(what));
        let mut command = Command::new("podman");
        command
            .args(["build", "--quiet", "--pull=never", "--layers=false", "--tag", &tag, "--file"])
            .arg(dockerfile);
        for (name, value) in arguments {
            command.arg("--build-arg").arg(format!("{name}={value}"));
        }
        run(command.arg(context))?;
        Ok(Image(tag))
    }

    /// What it is called.
    pub fn tag(&self) -> &str {
        &self.0
    }

    /// Runs its entry point with these words, which must end well; what it printed.
    pub fn run(&self, words: &[&str]) -> Result<String> {
        let mut command = Command::new("podman");
        command.args(["--runtime", "runc", "run", "--rm", "--network", "none"]).args(LIMITS);
        run(command.arg(&self.0).args(words))
    }

    /// What runs where nothing else is asked for.
    pub fn default_command(&self) -> Result<Vec<String>> {
        let said = run(Command::new("podman").args(["image", "inspect", &self.0]))?;
        let said: Value = serde_json::from_str(&said)?;
        let config = &said[0]["Config"];
        let words = [&config["Entrypoint"], &config["Cmd"]];
        let words = words.into_iter().filter_map(Value::as_array).flatten().filter_map(Value::as_str);
        Ok(words.map(str::to_owned).collect())
    }

    /// Runs `/app` in a container of this name; does not wait. crun refuses hosts with both kinds of control groups,
    /// so runc runs it.
    pub fn start(&self, name: &str, flags: &[&str]) -> Result<Fixture> {
        let mut command = Command::new("podman");
        command.args([
            "--runtime",
            "runc",
            "run",
            "--rm",
            "--interactive",
            "--network",
            "none",
            "--name",
            name,
        ]);
        command.args(LIMITS).args(flags).arg(&self.0).arg("/app");
        Fixture::spawn(command)
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let mut command = Command::new("podman");
        command.args(["rmi", "--force", &self.0]).stdout(Stdio::null()).stderr(Stdio::null());
        let _ = command.status();
    }
}
