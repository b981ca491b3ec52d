//! Whether a request was meant for this agent: a page in somebody's browser may have its own name lead to an address of
//! this host (DNS rebinding) and would read the answers. The name that the browser asked for is in the request.
use axum::http::{HeaderMap, Uri, header, uri::Authority};

use super::problem::Problem;

/// Passes requests for an address, for this host's own names, and for those that the configuration allows; and those
/// without a name, which no browser makes.
///
/// # Errors
/// 421 for any other name.
pub fn demand(uri: &Uri, headers: &HeaderMap, allowed: &[String], own: &str) -> Result<(), Problem> {
    let named = match (uri.authority(), headers.get(header::HOST)) {
        (Some(authority), _) => Some(authority.clone()),
        (None, None) => return Ok(()),
        (None, Some(value)) => value.to_str().ok().and_then(|text| text.parse::<Authority>().ok()),
    };
    let several = headers.get_all(header::HOST).iter().count() > 1;
    match named {
        Some(named) if !several && is_ours(named.host(), allowed, own) => Ok(()),
        _ => Err(Problem::new(
            421,
            "this agent is not called so: ask for its address, or add the name to http.allowed_hosts",
        )),
    }
}

fn is_ours(host: &str, allowed: &[String], own: &str) -> bool {
    let host = host.strip_suffix('.').unwrap_or(host);
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let is = |name: &str| !name.is_empty() && name.eq_ignore_ascii_case(host);
    // An address is nobody's name.
    bare.parse::<std::net::IpAddr>().is_ok()
        || is("localhost")
        || is(own)
        || allowed.iter().any(|name| name == "*" || is(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passes(host: &str) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, host.parse().unwrap());
        let allowed = ["leaks.example.org".to_owned()];
        demand(&Uri::from_static("/metrics"), &headers, &allowed, "web1").is_ok()
    }

    #[test]
    fn names_of_this_host_and_addresses_pass_and_no_others() {
        for host in [
            "localhost",
            "LOCALHOST:9464",
            "localhost.",
            "127.0.0.1:9464",
            "10.1.2.3",
            "[::1]:9464",
            "web1:9464",
            "leaks.example.org",
        ] {
            assert!(passes(host), "{host}");
        }
        for host in [
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "",
            "a b",
            "web1.evil",
            ":80",
        ] {
            assert!(!passes(host), "{host}");
        }
    }

    #[test]
    fn a_name_in_the_address_or_a_second_one_counts_too() {
        let mut headers = HeaderMap::new();
        let no_name = demand(&Uri::from_static("/"), &headers, &[], "");
        assert!(no_name.is_ok(), "no browser leaves it out");
        headers.insert(header::HOST, "localhost".parse().unwrap());
        assert!(demand(&Uri::from_static("http://evil.example/metrics"), &headers, &[], "").is_err());
        headers.append(header::HOST, "evil.example".parse().unwrap());
        assert!(demand(&Uri::from_static("/metrics"), &headers, &[], "").is_err());
        assert!(demand(&Uri::from_static("/metrics"), &headers, &["*".to_owned()], "").is_err());
    }
}
