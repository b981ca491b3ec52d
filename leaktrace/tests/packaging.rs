//! What is in `packaging` for Kubernetes, read as the types of its API: a field that does not exist there, a port, a
//! volume or a label that nothing else names, and a configuration that the agent refuses fail here.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
use std::{collections::BTreeSet, fs, path::PathBuf};

use k8s_openapi::{
    api::{
        apps::v1::DaemonSet,
        core::v1::{ConfigMap, Container, Namespace, PodSpec, Probe},
    },
    apimachinery::pkg::util::intstr::IntOrString,
};
use leaktrace::agent::service::config::{Config, DEFAULT_PATH};
use serde::de::DeserializeOwned;
use serde_yaml_ng::Value;

/// The documents of the manifest.
struct Manifest {
    namespace: Namespace,
    config: ConfigMap,
    agent: DaemonSet,
}

/// Reads a document as its type; fields that the type does not have are an error.
fn strictly<T: DeserializeOwned>(document: &Value) -> Result<T, String> {
    let mut unknown = Vec::new();
    let read = serde_ignored::deserialize(document, |path| unknown.push(path.to_string()));
    let read = read.map_err(|error| error.to_string())?;
    if unknown.is_empty() { Ok(read) } else { Err(format!("no such fields: {}", unknown.join(", "))) }
}

impl Manifest {
    fn parse(text: &str) -> Result<Manifest, String> {
        let documents = serde_yaml_ng::Deserializer::from_str(text);
        let documents: Result<Vec<Value>, _> = documents.map(serde::Deserialize::deserialize).collect();
        let documents = documents.map_err(|error| error.to_string())?;
        let [namespace, config, agent] = documents.as_slice() else {
            return Err(format!("{} documents", documents.len()));
        };
        Ok(Manifest { namespace: strictly(namespace)?, config: strictly(config)?, agent: strictly(agent)? })
    }

    fn read() -> Manifest {
        Manifest::parse(&text("kubernetes/leaktrace.yaml")).unwrap()
    }

    fn pod(&self) -> &PodSpec {
        self.agent.spec.as_ref().unwrap().template.spec.as_ref().unwrap()
    }

    fn container(&self) -> &Container {
        let [container] = self.pod().containers.as_slice() else { panic!("not one container") };
        container
    }
}

fn text(name: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../packaging").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn every_document_of_the_manifest_is_of_its_kind_and_has_no_unknown_field() {
    let manifest = Manifest::read();
    let name = manifest.namespace.metadata.name;
    assert!(name.is_some());
    assert_eq!([&manifest.config.metadata.namespace, &manifest.agent.metadata.namespace], [&name, &name]);
}

#[test]
fn a_misspelt_field_would_be_seen_wherever_it_is() {
    let right = text("kubernetes/leaktrace.yaml");
    for (field, wrong) in [
        ("hostPID:", "hostPid:"),
        ("mountPath: /sys/fs/cgroup", "mountpath: /sys/fs/cgroup"),
        ("readOnlyRootFilesystem:", "readonlyRootFilesystem:"),
        ("\ndata:", "\ndatas:"),
        ("containerPort: 9464", "containerPort: \"9464\""),
        ("failureThreshold: 30", "failureTreshold: 30"),
        ("kind: DaemonSet", "kind: Daemonset"),
    ] {
        assert_eq!(right.matches(field).count(), 1, "{field}");
        assert!(Manifest::parse(&right.replace(field, wrong)).is_err(), "{wrong}");
    }
}

#[test]
fn the_set_selects_its_own_pods() {
    let spec = Manifest::read().agent.spec.unwrap();
    let wanted = spec.selector.match_labels.unwrap();
    let labels = spec.template.metadata.unwrap().labels.unwrap();
    assert!(!wanted.is_empty() && wanted.iter().all(|(name, value)| labels.get(name) == Some(value)));
}

#[test]
fn every_volume_is_mounted_and_every_mount_has_its_volume() {
    let manifest = Manifest::read();
    let volumes = manifest.pod().volumes.as_ref().unwrap();
    let mounts = manifest.container().volume_mounts.as_ref().unwrap();
    let mounted: BTreeSet<&str> = mounts.iter().map(|mount| mount.name.as_str()).collect();
    assert_eq!(mounted, volumes.iter().map(|volume| volume.name.as_str()).collect());
    assert_eq!((mounted.len(), mounted.len()), (mounts.len(), volumes.len()), "a name twice");
    for volume in volumes {
        let sources = [volume.host_path.is_some(), volume.config_map.is_some()];
        assert_eq!(sources.iter().filter(|has| **has).count(), 1, "{}", volume.name);
    }
}

#[test]
fn the_agent_reads_the_configuration_of_the_manifest_and_accepts_it() {
    let manifest = Manifest::read();
    let (file, text) = manifest.config.data.as_ref().unwrap().first_key_value().unwrap();
    let config = Config::parse(text).unwrap();
    config.check().unwrap();
    let volumes = manifest.pod().volumes.as_ref().unwrap();
    let volume = volumes.iter().find(|volume| volume.config_map.is_some()).unwrap();
    assert_eq!(volume.config_map.as_ref().unwrap().name, manifest.config.metadata.name.clone().unwrap());
    let mounts = manifest.container().volume_mounts.as_ref().unwrap();
    let path_of = |name: &str| &mounts.iter().find(|mount| mount.name == name).unwrap().mount_path;
    assert_eq!(format!("{}/{file}", path_of(&volume.name)), DEFAULT_PATH);
    assert_eq!(manifest.container().args.as_ref().unwrap(), &["agent", "-c", DEFAULT_PATH]);
    let folder = config.snapshots.directory.unwrap();
    assert_eq!(folder.to_str().unwrap(), path_of("snapshots"), "files would be lost with the container");
}

#[test]
fn probes_and_annotations_name_the_port_that_the_agent_listens_on() {
    let manifest = Manifest::read();
    let container = manifest.container();
    let [port] = container.ports.as_deref().unwrap() else { panic!("not one port") };
    let text = manifest.config.data.as_ref().unwrap().values().next().unwrap();
    let listens = Config::parse(text).unwrap().http.listen.to_string();
    assert!(listens.ends_with(&format!(":{}", port.container_port)), "{listens}");
    let is_asked = |probe: &Option<Probe>| {
        let ask = probe.as_ref().unwrap().http_get.as_ref().unwrap();
        assert_eq!(Some(&ask.port), port.name.clone().map(IntOrString::String).as_ref());
        assert_eq!(ask.path.as_deref(), Some("/api/v1/stats"));
    };
    is_asked(&container.startup_probe);
    is_asked(&container.liveness_probe);
    let annotations = manifest.agent.spec.as_ref().unwrap().template.metadata.as_ref().unwrap();
    let annotations = annotations.annotations.as_ref().unwrap();
    assert_eq!(annotations.get("prometheus.io/port"), Some(&port.container_port.to_string()));
}

/// `attach` says which capabilities are needed; the unit for systemd and the manifest both have them.
#[test]
fn the_manifest_and_the_unit_grant_the_same_capabilities() {
    let manifest = Manifest::read();
    let context = manifest.container().security_context.as_ref().unwrap();
    let capabilities = context.capabilities.as_ref().unwrap();
    assert_eq!(capabilities.drop.as_deref().unwrap(), ["ALL"]);
    let granted: BTreeSet<&str> = capabilities.add.iter().flatten().map(String::as_str).collect();
    let unit = text("systemd/leaktrace.service");
    let line = unit.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet=")).unwrap();
    assert_eq!(granted, line.split(' ').map(|name| name.strip_prefix("CAP_").unwrap()).collect());
}
