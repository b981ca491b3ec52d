//! Brings kernels: finds the newest package of a series in a private state of apt, downloads it (checked by apt as any
//! package is), and keeps the kernel alone. Nothing outside of `target/kernels` changes.
use super::{arch::Arch, image, series::Series, sources};
use crate::command;
use anyhow::{Context, Result, bail};
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, SystemTime},
};

/// Lists of packages are fetched again after this time.
const LISTS_ARE_FRESH: Duration = Duration::from_secs(24 * 3600);

/// A kernel that can be booted.
#[derive(Clone, Debug)]
pub(super) struct Kernel {
    /// What it was asked for as.
    pub(super) name: String,
    /// As in `uname -r`.
    pub(super) release: String,
    pub(super) series: Series,
    /// The uncompressed kernel.
    pub(super) vmlinux: PathBuf,
}

/// Where everything about kernels is kept.
pub(super) fn folder() -> PathBuf {
    command::root().join("target/kernels")
}

/// A private state of apt for one architecture.
pub(super) struct Packages {
    arch: Arch,
    folder: PathBuf,
}

impl Packages {
    /// Opens it; fetches the lists of packages where there are none or old ones.
    pub(super) fn open(arch: Arch) -> Result<Packages> {
        for program in ["apt-get", "apt-cache", "dpkg-deb"] {
            if command::find(program).is_none() {
                bail!(
                    "kernels come as Debian's packages, and there is no {program}: give one by KERNEL_IMAGE=path"
                );
            }
        }
        let packages = Packages { arch, folder: folder().join(format!("apt-{}", arch.debian())) };
        for folder in ["lists/partial", "cache/archives/partial"] {
            let folder = packages.folder.join(folder);
            fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        }
        packages.update().context("the lists of packages with kernels cannot be fetched")?;
        Ok(packages)
    }

    fn update(&self) -> Result<()> {
        let stamp = self.folder.join("updated");
        let sources = sources::derive(&texts("sources")?, &texts("list")?)?;
        let file = self.sources();
        let is_same = fs::read_to_string(&file).is_ok_and(|text| text == sources);
        let age = fs::metadata(&stamp)
            .and_then(|meta| meta.modified())
            .map(|time| SystemTime::now().duration_since(time));
        if is_same && matches!(age, Ok(Ok(age)) if age < LISTS_ARE_FRESH) {
            return Ok(());
        }
        fs::write(&file, sources).with_context(|| format!("cannot write {}", file.display()))?;
        println!("kernels: fetching lists of packages");
        // Without this, a list that cannot be fetched is only a warning.
        let strict = ["-o", "APT::Update::Error-Mode=any", "-qq", "update"];
        command::capture(self.apt("apt-get").args(strict))?;
        fs::write(&stamp, "").with_context(|| format!("cannot write {}", stamp.display()))
    }

    fn sources(&self) -> PathBuf {
        self.folder.join("debian.sources")
    }

    /// A program of apt that sees this state only.
    fn apt(&self, program: &str) -> Command {
        let mut apt = command::clean(program);
        let mut set = |name: &str, value: &str| {
            apt.arg("-o").arg(format!("{name}={value}"));
        };
        set("Dir::State::lists", &self.folder.join("lists").to_string_lossy());
        set("Dir::Cache", &self.folder.join("cache").to_string_lossy());
        set("Dir::Etc::sourcelist", &self.sources().to_string_lossy());
        set("Dir::Etc::sourceparts", "-");
        set("APT::Architecture", self.arch.debian());
        set("APT::Architectures", self.arch.debian());
        set("APT::Sandbox::User", "root");
        set("APT::Get::List-Cleanup", "no");
        set("Acquire::Languages", "none");
        set("Acquire::IndexTargets::deb::DEP-11::DefaultEnabled", "false");
        set("Acquire::Retries", "3");
        apt.env("LC_ALL", "C");
        apt
    }

    /// The newest kernel of a series, from the cache where it has been fetched before.
    pub(super) fn kernel(&self, series: Series) -> Result<Kernel> {
        let package = self.newest(series)?;
        let folder = folder().join(self.arch.debian()).join(&package.name).join(&package.version);
        let vmlinux = folder.join("vmlinux");
        let release = folder.join("release");
        if !vmlinux.is_file() || !release.is_file() {
            println!("kernels: fetching {} {}", package.name, package.version);
            let found = self.download(&package, &folder)?;
            fs::write(&release, found).with_context(|| format!("cannot write {}", release.display()))?;
        }
        let release =
            fs::read_to_string(&release).with_context(|| format!("cannot read {}", release.display()))?;
        Ok(Kernel { name: series.to_string(), release, series, vmlinux })
    }

    fn newest(&self, series: Series) -> Result<Package> {
        let names = command::capture(self.apt("apt-cache").args(["pkgnames", "linux-"]))?;
        let names: Vec<&str> = candidates(names.lines(), series, self.arch);
        if names.is_empty() {
            bail!(
                "no package has a kernel {series} for {}: the archive no longer carries it",
                self.arch.debian()
            );
        }
        let shown = command::capture(self.apt("apt-cache").args(["show", "--no-all-versions"]).args(&names))?;
        let mut newest: Option<Package> = None;
        for package in shown.split("\n\n").filter_map(Package::parse) {
            if newest.as_ref().is_none_or(|newest| is_newer(&package.version, &newest.version)) {
                newest = Some(package);
            }
        }
        newest.with_context(|| format!("apt knows nothing about {}", names.join(" ")))
    }

    /// Fetches the package, leaves `vmlinux` in the folder, and returns the kernel's release.
    fn download(&self, package: &Package, folder: &Path) -> Result<String> {
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let partial =
            tempfile::Builder::new().prefix("partial-").tempdir_in(folder).context("no temporary folder")?;
        let mut apt = self.apt("apt-get");
        apt.args(["-qq", "download"]).arg(format!("{}={}", package.name, package.version));
        command::capture(apt.current_dir(partial.path()))
            .with_context(|| format!("{} cannot be fetched", package.name))?;
        let archive = only_file(partial.path(), "deb")?;
        let compressed = unpack(&archive, partial.path())?;
        let bytes = fs::read(&compressed).with_context(|| format!("cannot read {}", compressed.display()))?;
        let release = image::release(&bytes).context("a kernel without a release")?;
        let vmlinux = image::extract(&bytes)?;
        let file = partial.path().join("vmlinux");
        fs::write(&file, vmlinux).with_context(|| format!("cannot write {}", file.display()))?;
        fs::rename(&file, folder.join("vmlinux")).context("the kernel cannot be moved into the cache")?;
        Ok(release)
    }
}

/// A kernel that was given by its path: compressed as it is installed, or a vmlinux.
pub(super) fn given(path: &Path) -> Result<Kernel> {
    let bytes = fs::read(path).with_context(|| format!("KERNEL_IMAGE: cannot read {}", path.display()))?;
    let release = image::release(&bytes)
        .with_context(|| format!("KERNEL_IMAGE: {} is no compressed kernel (bzImage)", path.display()))?;
    let series =
        Series::of_release(&release).with_context(|| format!("the release {release:?} has no series"))?;
    let folder = folder().join("given");
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let vmlinux = folder.join(format!("vmlinux-{release}"));
    fs::write(&vmlinux, image::extract(&bytes)?)
        .with_context(|| format!("cannot write {}", vmlinux.display()))?;
    Ok(Kernel { name: "given".to_owned(), release, series, vmlinux })
}

/// A package with a kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Package {
    name: String,
    version: String,
}

impl Package {
    /// From a stanza of `apt-cache show`.
    fn parse(stanza: &str) -> Option<Package> {
        let field = |name: &str| stanza.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
        Some(Package { name: field("Package: ")?, version: field("Version: ")? })
    }
}

/// The packages that hold the kernels of a series themselves. Newer series keep the kernel in `linux-binary-…`, and
/// `linux-image-…` only depends on it.
fn candidates<'a>(names: impl Iterator<Item = &'a str>, series: Series, arch: Arch) -> Vec<&'a str> {
    let start = format!("{}.{}.", series.major, series.minor);
    let flavour = if series.is_plain { "" } else { "-cloud" };
    let end = format!("{flavour}-{}", arch.debian());
    let is_of_flavour = |release: &str| {
        release
            .strip_suffix(end.as_str())
            .is_some_and(|version| version.chars().last().is_some_and(|c| c.is_ascii_digit()))
    };
    let all: Vec<&str> = names.collect();
    let with = |kind: &str| -> Vec<&'a str> {
        let release = |name: &&'a str| {
            name.strip_prefix(kind).is_some_and(|rest| rest.starts_with(&start) && is_of_flavour(rest))
        };
        all.iter().copied().filter(|name| release(name)).collect()
    };
    let binaries = with("linux-binary-");
    if binaries.is_empty() { with("linux-image-") } else { binaries }
}

fn is_newer(version: &str, than: &str) -> bool {
    command::clean("dpkg")
        .args(["--compare-versions", version, "gt", than])
        .status()
        .is_ok_and(|status| status.success())
}

/// All configured sources of packages of one format.
fn texts(format: &str) -> Result<Vec<String>> {
    let mut files: Vec<PathBuf> = fs::read_dir("/etc/apt/sources.list.d")
        .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
        .unwrap_or_default();
    files.push("/etc/apt/sources.list".into());
    files.sort();
    files
        .into_iter()
        .filter(|file| file.extension().is_some_and(|end| end == format) && file.is_file())
        .map(|file| fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display())))
        .collect()
}

fn only_file(folder: &Path, extension: &str) -> Result<PathBuf> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    entries
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|end| end == extension))
        .with_context(|| format!("no file ends in .{extension}"))
}

/// Takes the compressed kernel out of a package.
fn unpack(package: &Path, folder: &Path) -> Result<PathBuf> {
    let mut reader = command::clean("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(package)
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run dpkg-deb")?;
    let pipe = reader.stdout.take().context("no standard output")?;
    // tar fails for the pattern that matches nothing; whether a kernel came out is seen below.
    let places = ["./boot/vmlinuz-*", "./usr/lib/modules/*/vmlinuz", "./lib/modules/*/vmlinuz"];
    command::clean("tar")
        .args(["-x", "--wildcards", "--transform", "s,.*/,,", "-C"])
        .arg(folder)
        .args(places)
        .stdin(pipe)
        .stderr(Stdio::null())
        .status()
        .context("cannot run tar")?;
    reader.wait().context("dpkg-deb got lost")?;
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    entries
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz")))
        .with_context(|| format!("no kernel in {}", package.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: &[&str] = &[
        "linux-image-6.1.0-57-cloud-amd64",
        "linux-image-6.1.0-57-amd64",
        "linux-image-6.1.0-57-rt-amd64",
        "linux-image-6.1.0-57-amd64-unsigned",
        "linux-image-6.12.118+deb13-cloud-amd64",
        "linux-image-6.19.14+deb13-cloud-amd64",
        "linux-binary-6.19.14+deb13-cloud-amd64",
        "linux-binary-unsigned-6.19.14+deb13-cloud-amd64",
        "linux-image-6.1-cloud-amd64",
    ];

    fn found(series: &str) -> Vec<&'static str> {
        candidates(NAMES.iter().copied(), series.parse().unwrap(), Arch::Amd64)
    }

    #[test]
    fn packages_with_the_kernel_itself_are_taken() {
        assert_eq!(found("6.1"), ["linux-image-6.1.0-57-cloud-amd64"]);
        assert_eq!(found("6.1-plain"), ["linux-image-6.1.0-57-amd64"]);
        assert_eq!(found("6.19"), ["linux-binary-6.19.14+deb13-cloud-amd64"]);
        assert!(found("6.2").is_empty());
    }

    #[test]
    fn versions_are_compared_as_dpkg_does() {
        assert!(is_newer("6.12.118-1", "6.12.95-1~bpo"));
        assert!(!is_newer("6.12.95-1", "6.12.118-1"));
    }
}
