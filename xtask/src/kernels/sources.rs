//! Where Debian's kernels are: derived from what this host is configured to install from, with the name of the
//! release exchanged. Pure: texts come in as values.
use anyhow::{Result, bail};

/// Names that stand for a release of Debian in configured sources.
const RELEASES: &[&str] =
    &["bullseye", "bookworm", "trixie", "forky", "sid", "stable", "oldstable", "testing", "unstable"];

/// What is looked at: the releases whose kernels are wanted, and the archives that have them.
const WANTED: &[&str] = &["bullseye", "bookworm", "trixie", "trixie-backports"];
const WANTED_SECURITY: &[&str] = &["bullseye-security", "bookworm-security", "trixie-security"];

/// An archive as it is configured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Archive {
    address: String,
    suites: Vec<String>,
    /// With continuation lines, as it stands in the file.
    signed_by: Option<String>,
}

/// The sources of a private apt state that has all wanted releases; the texts are those of `*.sources` (stanzas) and
/// `*.list` files (lines).
pub(super) fn derive(stanzas: &[String], lists: &[String]) -> Result<String> {
    let mut archives: Vec<Archive> = stanzas.iter().flat_map(|text| read_stanzas(text)).collect();
    archives.extend(lists.iter().flat_map(|text| text.lines().filter_map(read_line)));
    let has = |archive: &&Archive, wanted: &dyn Fn(&str) -> bool| archive.suites.iter().any(|s| wanted(s));
    let main = archives.iter().find(|archive| has(archive, &|suite| RELEASES.contains(&suite)));
    let is_security =
        |suite: &str| suite.strip_suffix("-security").is_some_and(|name| RELEASES.contains(&name));
    let security = archives.iter().find(|archive| has(archive, &is_security));
    let Some(main) = main else {
        bail!("no archive of Debian among the configured sources of packages (/etc/apt)");
    };
    let mut text = stanza(main, WANTED);
    if let Some(security) = security {
        text.push('\n');
        text.push_str(&stanza(security, WANTED_SECURITY));
    }
    Ok(text)
}

fn stanza(archive: &Archive, suites: &[&str]) -> String {
    let signed_by = archive.signed_by.as_ref().map(|key| format!("Signed-By:{key}\n")).unwrap_or_default();
    let suites = suites.join(" ");
    format!("Types: deb\nURIs: {}\nSuites: {suites}\nComponents: main\n{signed_by}", archive.address)
}

/// The stanzas of a `.sources` file that are enabled and bring binary packages.
fn read_stanzas(text: &str) -> Vec<Archive> {
    let mut archives = Vec::new();
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    for stanza in lines.split(|line| line.trim().is_empty()) {
        let field = |name: &str| field(stanza, name);
        let is_binary = field("types").is_none_or(|types| types.split_whitespace().any(|word| word == "deb"));
        let is_enabled = field("enabled").is_none_or(|value| value.trim() != "no");
        let (Some(addresses), Some(suites)) = (field("uris"), field("suites")) else { continue };
        if let (true, true, Some(address)) = (is_binary, is_enabled, addresses.split_whitespace().next()) {
            archives.push(Archive {
                address: address.to_owned(),
                suites: suites.split_whitespace().map(str::to_owned).collect(),
                signed_by: field("signed-by"),
            });
        }
    }
    archives
}

/// A field with its continuation lines; field names know no case.
fn field(stanza: &[&str], name: &str) -> Option<String> {
    let mut lines = stanza.iter();
    let first = lines.find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.trim().eq_ignore_ascii_case(name).then_some(value)
    })?;
    let mut value = first.to_owned();
    for line in lines.take_while(|line| line.starts_with([' ', '\t'])) {
        value.push('\n');
        value.push_str(line);
    }
    Some(value)
}

/// A line `deb [signed-by=KEY] ADDRESS SUITE COMPONENT…`.
fn read_line(line: &str) -> Option<Archive> {
    let rest = line.trim().strip_prefix("deb ")?.trim_start();
    let (options, rest) = match rest.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => ("", rest),
    };
    let mut words = rest.split_whitespace();
    let key = options.split_whitespace().find_map(|word| word.strip_prefix("signed-by="));
    Some(Archive {
        address: words.next()?.to_owned(),
        suites: vec![words.next()?.to_owned()],
        signed_by: key.map(|key| format!(" {key}")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const STANZAS: &str = "Types: deb\n# an old address\nURIs: http://one.example/debian\nSuites: bookworm bookworm-updates\n\
        Components: main\nSigned-By: /keys/a.gpg\n\nTypes: deb\nURIs: http://two.example/sec\n\
        Suites: bookworm-security\nComponents: main\nSigned-By:\n -----BEGIN\n .\n abc\n";

    #[test]
    fn stanzas_keep_address_and_key_and_change_the_release() {
        let text = derive(&[STANZAS.to_owned()], &[]).unwrap();
        assert!(
            text.contains(
                "URIs: http://one.example/debian\nSuites: bullseye bookworm trixie trixie-backports"
            )
        );
        assert!(text.contains("Signed-By: /keys/a.gpg\n"));
        assert!(text.contains("URIs: http://two.example/sec\nSuites: bullseye-security"));
        assert!(text.contains("Signed-By:\n -----BEGIN\n .\n abc\n"));
    }

    #[test]
    fn lines_are_read_as_well() {
        let list =
            "# comment\ndeb [arch=amd64 signed-by=/keys/b.gpg] http://three.example/debian trixie main\n";
        let text = derive(&[], &[list.to_owned()]).unwrap();
        assert!(text.contains("URIs: http://three.example/debian\nSuites: bullseye"));
        assert!(text.contains("Signed-By: /keys/b.gpg"));
        assert!(!text.contains("security"));
    }

    #[test]
    fn other_archives_are_none_of_debians() {
        let other = "Types: deb\nURIs: http://x.example\nSuites: nodistro\nComponents: main\n";
        assert!(
            derive(&[other.to_owned()], &["deb http://y.example cloud-bookworm main".to_owned()]).is_err()
        );
        let disabled = format!("Enabled: no\n{STANZAS}");
        assert!(
            !derive(&[disabled], &["deb http://z.example stable main".to_owned()])
                .unwrap()
                .contains("one.example")
        );
    }
}
