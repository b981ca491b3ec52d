//! Who may change something: requests that carry the configured token.
use axum::http::{HeaderMap, header};
use subtle::ConstantTimeEq as _;

use super::problem::Problem;

/// Whether the request may change something.
///
/// # Errors
/// 403 where no token is configured, 401 where it is missing or another.
pub fn demand(headers: &HeaderMap, token: Option<&str>) -> Result<(), Problem> {
    let Some(token) = token else {
        return Err(Problem::new(
            403,
            "this agent only answers questions: set http.token_file in its configuration to allow requests that change something",
        ));
    };
    let given = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map_or("", |(_, given)| given.trim());
    if bool::from(given.as_bytes().ct_eq(token.as_bytes())) {
        Ok(())
    } else {
        Err(Problem::new(401, "send the agent's token: Authorization: Bearer TOKEN"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(header: Option<&str>, token: Option<&str>) -> u16 {
        let mut headers = HeaderMap::new();
        if let Some(value) = header {
            headers.insert(header::AUTHORIZATION, value.parse().unwrap());
        }
        demand(&headers, token).err().map_or(200, |problem| problem.status())
    }

    #[test]
    fn only_the_token_opens() {
        let token = Some("0123456789abcdef");
        assert_eq!(status(Some("Bearer 0123456789abcdef"), token), 200);
        assert_eq!(status(Some("bearer  0123456789abcdef"), token), 200);
        for wrong in [
            None,
            Some("Bearer"),
            Some("Bearer 0123456789abcdeg"),
            Some("Basic 0123456789abcdef"),
            Some("Bearer 0"),
        ] {
            assert_eq!(status(wrong, token), 401, "{wrong:?}");
        }
        assert_eq!(status(Some("Bearer "), None), 403);
        assert_eq!(status(None, None), 403);
    }
}
