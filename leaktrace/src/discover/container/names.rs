//! What a container is called, from what runtimes write about it. Pure; every text is hostile and cut to a bound.
use std::collections::BTreeMap;

use serde::{
    Deserialize,
    de::{Deserializer, IgnoredAny, MapAccess, Visitor},
};

/// The longest name that is kept, in characters.
const MAX_NAME: usize = 256;

/// What a container is called, as far as that is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// Its name: within its pod, where it is in one.
    pub name: Option<String>,
    /// Its pod's name.
    pub pod: Option<String>,
    /// Its pod's namespace.
    pub namespace: Option<String>,
    /// Its image, as it was asked for.
    pub image: Option<String>,
    /// The project that compose made it for.
    pub compose_project: Option<String>,
    /// The service in that project.
    pub compose_service: Option<String>,
    /// Labels were read: there is no more to be known.
    pub has_labels: bool,
}

impl Names {
    /// Takes what is missing here from `other`.
    pub fn fill_from(&mut self, other: Names) {
        self.name = self.name.take().or(other.name);
        self.pod = self.pod.take().or(other.pod);
        self.namespace = self.namespace.take().or(other.namespace);
        self.image = self.image.take().or(other.image);
        self.compose_project = self.compose_project.take().or(other.compose_project);
        self.compose_service = self.compose_service.take().or(other.compose_service);
        self.has_labels |= other.has_labels;
    }

    /// Whether anything is known.
    pub fn is_empty(&self) -> bool {
        *self == Names::default()
    }

    fn of_labels(labels: &Labels) -> Names {
        let first =
            |keys: &[&str]| keys.iter().find_map(|key| labels.0.get(*key)).and_then(|value| bound(value));
        Names {
            name: first(&[
                "io.kubernetes.cri.container-name",
                "io.kubernetes.container.name",
                "nerdctl/name",
            ]),
            pod: first(&["io.kubernetes.cri.sandbox-name", "io.kubernetes.pod.name"]),
            namespace: first(&["io.kubernetes.cri.sandbox-namespace", "io.kubernetes.pod.namespace"]),
            image: first(&["io.kubernetes.cri.image-name", "io.kubernetes.cri-o.ImageName"]),
            compose_project: first(&["com.docker.compose.project", "io.podman.compose.project"]),
            compose_service: first(&["com.docker.compose.service", "io.podman.compose.service"]),
            has_labels: false,
        }
    }
}

fn bound(text: &str) -> Option<String> {
    if text.is_empty() { None } else { Some(text.chars().take(MAX_NAME).collect()) }
}

/// The labels that mean something here; all others are passed over as they are read.
#[derive(Debug, Default)]
struct Labels(BTreeMap<&'static str, String>);

const KNOWN_LABELS: [&str; 13] = [
    "io.kubernetes.cri.container-name",
    "io.kubernetes.container.name",
    "nerdctl/name",
    "io.kubernetes.cri.sandbox-name",
    "io.kubernetes.pod.name",
    "io.kubernetes.cri.sandbox-namespace",
    "io.kubernetes.pod.namespace",
    "io.kubernetes.cri.image-name",
    "io.kubernetes.cri-o.ImageName",
    "com.docker.compose.project",
    "io.podman.compose.project",
    "com.docker.compose.service",
    "io.podman.compose.service",
];

impl Labels {
    fn insert(&mut self, key: &str, value: String) {
        if let Some(known) = KNOWN_LABELS.iter().find(|known| **known == key) {
            self.0.insert(known, value);
        }
    }
}

impl<'de> Deserialize<'de> for Labels {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Labels, D::Error> {
        struct Visit;
        impl<'de> Visitor<'de> for Visit {
            type Value = Labels;

            fn expecting(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                out.write_str("labels")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Labels, M::Error> {
                let mut labels = Labels::default();
                while let Some(key) = map.next_key::<String>()? {
                    if KNOWN_LABELS.contains(&key.as_str()) {
                        labels.insert(&key, map.next_value()?);
                    } else {
                        map.next_value::<IgnoredAny>()?;
                    }
                }
                Ok(labels)
            }

            fn visit_unit<E>(self) -> Result<Labels, E> {
                Ok(Labels::default())
            }
        }
        deserializer.deserialize_any(Visit)
    }
}

#[derive(Deserialize)]
struct Described {
    #[serde(rename = "Name", default)]
    name: String,
    #[serde(rename = "Config", default)]
    config: Option<Config>,
}

#[derive(Deserialize)]
struct Config {
    #[serde(rename = "Image", default)]
    image: String,
    #[serde(rename = "Labels", default)]
    labels: Option<Labels>,
}

/// Docker's description: its file config.v2.json, or what its interface and podman's answer.
pub(super) fn of_docker(json: &[u8]) -> Option<Names> {
    let described: Described = serde_json::from_slice(json).ok()?;
    let config = described.config;
    let labels = config.as_ref().and_then(|config| config.labels.as_ref()).map(Names::of_labels);
    let mut names = Names {
        image: config.as_ref().and_then(|config| bound(&config.image)),
        has_labels: true,
        ..labels.unwrap_or_default()
    };
    // The name that Kubernetes gave is said by a label; Docker's own is made of it and longer.
    names.name = names.name.or_else(|| bound(described.name.trim_start_matches('/')));
    Some(names)
}

#[derive(Deserialize)]
struct Stored {
    id: String,
    #[serde(default)]
    names: Option<Vec<String>>,
    #[serde(default)]
    metadata: String,
}

#[derive(Deserialize)]
struct StoredImage {
    #[serde(rename = "image-name", default)]
    image: String,
}

/// One container of the list in containers/storage, which podman and CRI-O keep.
pub(super) fn of_storage(json: &[u8], id: &str) -> Option<Names> {
    let list: Vec<Stored> = serde_json::from_slice(json).ok()?;
    let stored = list.into_iter().find(|stored| stored.id == id)?;
    let image = serde_json::from_str::<StoredImage>(&stored.metadata).ok();
    Some(Names {
        name: stored.names.and_then(|names| names.into_iter().next()).and_then(|name| bound(&name)),
        image: image.and_then(|image| bound(&image.image)),
        ..Names::default()
    })
}

#[derive(Deserialize)]
struct Bundle {
    #[serde(default)]
    annotations: Option<Labels>,
}

/// The annotations of a bundle's config.json.
pub(super) fn of_bundle(json: &[u8]) -> Option<Names> {
    let bundle: Bundle = serde_json::from_slice(json).ok()?;
    Some(Names::of_labels(&bundle.annotations.unwrap_or_default()))
}

#[derive(Deserialize)]
struct RuncState {
    config: RuncConfig,
}

#[derive(Deserialize)]
struct RuncConfig {
    #[serde(default)]
    labels: Option<Vec<String>>,
}

/// runc's state.json, whose labels are the bundle's annotations as `key=value`.
pub(super) fn of_runc_state(json: &[u8]) -> Option<Names> {
    let state: RuncState = serde_json::from_slice(json).ok()?;
    let mut labels = Labels::default();
    for (key, value) in state.config.labels.iter().flatten().filter_map(|label| label.split_once('=')) {
        labels.insert(key, value.to_owned());
    }
    Some(Names::of_labels(&labels))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    #[test]
    fn docker_s_description_gives_name_image_and_compose_names() {
        let json = br#"{"ID":"x","Name":"/shop-web-1","State":{"Running":true},"Config":{"Image":"nginx:1",
            "Labels":{"com.docker.compose.project":"shop","com.docker.compose.service":"web","other":"1"}}}"#;
        let names = of_docker(json).unwrap();
        assert_eq!((names.name, names.image), (some("shop-web-1"), some("nginx:1")));
        assert_eq!((names.compose_project, names.compose_service), (some("shop"), some("web")));
        assert!(names.has_labels);
    }

    #[test]
    fn a_container_of_kubernetes_under_docker_has_its_name_in_the_pod() {
        let json = br#"{"Name":"/k8s_app_web-0_default_uid_0","Config":{"Image":"i","Labels":{
            "io.kubernetes.container.name":"app","io.kubernetes.pod.name":"web-0","io.kubernetes.pod.namespace":"default"}}}"#;
        let names = of_docker(json).unwrap();
        assert_eq!((names.name, names.pod, names.namespace), (some("app"), some("web-0"), some("default")));
    }

    #[test]
    fn missing_and_null_parts_are_no_error() {
        assert_eq!(of_docker(br#"{"Name":"/a","Config":{"Labels":null}}"#).unwrap().name, some("a"));
        assert_eq!(of_docker(br#"{"Name":"/a"}"#).unwrap().image, None);
        assert_eq!(of_bundle(b"{}"), Some(Names::default()));
        assert_eq!(of_bundle(br#"{"annotations":null}"#), Some(Names::default()));
        assert_eq!(of_runc_state(br#"{"config":{}}"#), Some(Names::default()));
        assert_eq!(of_storage(br#"[{"id":"a","names":null}]"#, "a"), Some(Names::default()));
    }

    #[test]
    fn storage_lists_names_and_images() {
        let json =
            br#"[{"id":"a"},{"id":"b","names":["lt1"],"metadata":"{\"image-name\":\"localhost/lt:test\"}"}]"#;
        let names = of_storage(json, "b").unwrap();
        assert_eq!((names.name, names.image), (some("lt1"), some("localhost/lt:test")));
        assert_eq!(of_storage(json, "c"), None);
    }

    #[test]
    fn containerd_s_annotations_name_container_pod_and_image() {
        let json = br#"{"ociVersion":"1.0","annotations":{"io.kubernetes.cri.container-name":"app",
            "io.kubernetes.cri.sandbox-name":"web-0","io.kubernetes.cri.sandbox-namespace":"shop",
            "io.kubernetes.cri.image-name":"registry/app:2"}}"#;
        let names = of_bundle(json).unwrap();
        assert_eq!((names.name, names.pod), (some("app"), some("web-0")));
        assert_eq!((names.namespace, names.image), (some("shop"), some("registry/app:2")));
        let labels = br#"{"config":{"labels":["bundle=/b","io.kubernetes.cri.container-name=app"]}}"#;
        assert_eq!(of_runc_state(labels).unwrap().name, some("app"));
    }

    #[test]
    fn hostile_texts_are_cut_or_refused() {
        let long = format!(r#"{{"Name":"/{}"}}"#, "x".repeat(100_000));
        assert_eq!(of_docker(long.as_bytes()).unwrap().name.unwrap().len(), MAX_NAME);
        let deep = "[".repeat(100_000);
        for json in [b"".as_slice(), b"null", b"[1]", b"{\"Name\":3}", deep.as_bytes()] {
            assert_eq!(of_docker(json), None);
            assert_eq!(of_storage(json, "a"), None);
            assert_eq!(of_runc_state(json), None);
        }
    }

    #[test]
    fn what_is_known_already_stays() {
        let mut names = Names { name: some("a"), ..Names::default() };
        names.fill_from(Names { name: some("b"), image: some("i"), has_labels: true, ..Names::default() });
        assert_eq!((names.name, names.image, names.has_labels), (some("a"), some("i"), true));
    }
}
