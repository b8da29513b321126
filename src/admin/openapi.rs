//! The description of the admin API: an OpenAPI 3.1 document, written by hand in `openapi.json`.
//!
//! The tests below compare it with the router, and `openapi_tests.rs` with the types of the responses. It is not
//! generated: the generator's code would be part of the binary, for a document that never changes at run time.

use axum::extract::Request;
use axum::http::header;
use axum::response::{IntoResponse, Response};

use super::{Context, Error};

/// Without the blanks of the file (build.rs).
const DOCUMENT: &str = include_str!(concat!(env!("OUT_DIR"), "/openapi.json"));

pub(super) async fn openapi(_: Context, _: Request) -> Result<Response, Error> {
    Ok(([(header::CONTENT_TYPE, "application/json")], DOCUMENT).into_response())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;

    /// `get /path` of each `.route("/path", get(..))` in the router's source; a path may have several methods.
    fn routes() -> BTreeSet<String> {
        let source = include_str!("mod.rs");
        let of = |line: &str| -> Option<Vec<String>> {
            let (path, rest) = line.trim().strip_prefix(".route(\"")?.split_once("\", ")?;
            let rest = format!(".{rest}");
            let has = |method: &&str| rest.contains(&format!(".{method}("));
            Some(["get", "post"].into_iter().filter(has).map(|method| format!("{method} {path}")).collect())
        };
        source.lines().filter_map(of).flatten().collect()
    }

    #[test]
    fn the_document_and_the_router_have_the_same_routes() {
        let document: Value = serde_json::from_str(DOCUMENT).unwrap();
        let paths = document["paths"].as_object().unwrap();
        let of = |(path, methods): (&String, &Value)| -> Vec<String> {
            methods.as_object().unwrap().keys().map(|method| format!("{method} {path}")).collect()
        };
        let described: BTreeSet<String> = paths.iter().flat_map(of).collect();
        assert!(routes().len() > 15, "{:?}: is the router where it was?", routes());
        assert_eq!(described, routes());
    }

    #[test]
    fn every_name_in_the_document_is_there() {
        let document: Value = serde_json::from_str(DOCUMENT).unwrap();
        let mut seen = 0;
        for reference in DOCUMENT.split("\"$ref\":\"#").skip(1) {
            let name = reference.split('"').next().unwrap();
            assert!(document.pointer(name).is_some(), "{name}");
            seen += 1;
        }
        assert!(seen > 20, "only {seen}");
    }
}
