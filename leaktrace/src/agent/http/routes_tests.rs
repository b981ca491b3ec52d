use std::collections::BTreeSet;

use super::*;

#[test]
fn every_route_is_described_and_every_description_has_a_route() {
    let document: serde_json::Value = serde_json::from_str(OPENAPI).unwrap();
    let described: BTreeSet<String> = document["paths"].as_object().unwrap().keys().cloned().collect();
    let source = include_str!("routes.rs");
    let routed: BTreeSet<String> = source
        .split(".route(\"")
        .skip(1)
        .filter_map(|rest| Some(rest.split_once('"')?.0.to_owned()))
        .collect();
    assert_eq!(routed, described);
}

#[test]
fn the_reasons_of_files_are_described() {
    let document: serde_json::Value = serde_json::from_str(OPENAPI).unwrap();
    let described = &document["components"]["schemas"]["SnapshotFile"]["properties"]["reason"]["enum"];
    let names: Vec<&str> =
        crate::agent::service::store::Reason::ALL.iter().map(|reason| reason.name()).collect();
    assert_eq!(described, &serde_json::json!(names));
}
