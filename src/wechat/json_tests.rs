//! Tests of `json`: what is kept of JSON pushes, what is refused, and that handlers can make the push of it again.

use proptest::prelude::*;
use serde_json::{Number, json};

use super::*;
use crate::wechat::xml;

#[test]
fn a_json_push_gives_the_tree_of_the_same_push_in_xml() {
    let json = r#"{"ToUserName":"gh_1","CreateTime":1714037059,"List":[{"A":"1"},{"A":"2"}],"One":{"A":"你\n"},"None":null,"Empty":[]}"#;
    let xml = "<xml><ToUserName>gh_1</ToUserName><CreateTime>1714037059</CreateTime><List><A>1</A></List>\
        <List><A>2</A></List><One><A>你\n</A></One><None/><Empty/></xml>";
    assert_eq!(parse(json.as_bytes()).unwrap(), xml::parse(xml).unwrap());
}

#[test]
fn numbers_keep_their_digits() {
    let large = "340282366920938463463374607431768211456";
    for number in ["18446744073709551615", "-9223372036854775808", large, "17e3700013"] {
        let root = parse(format!(r#"{{"MsgId":{number}}}"#).as_bytes()).unwrap();
        assert_eq!(root.text_of("MsgId"), Some(number));
    }
    let root = parse(br#"{"a":23.10,"b":1e5,"c":true,"d":false,"e":-0}"#).unwrap();
    let texts: Vec<_> = root.children.iter().map(|child| child.text.as_str()).collect();
    assert_eq!(texts, ["23.10", "1e5", "true", "false", "-0"]);
}

#[test]
fn repeated_keys_and_lists_of_lists_keep_their_order() {
    let root = parse(br#"{"a":1,"b":2,"a":3,"l":[[1,2],[3]]}"#).unwrap();
    assert_eq!(message(&root), json!({"a":["1","3"],"b":"2","l":[{"item":["1","2"]},{"item":"3"}]}));
    let names: Vec<_> = root.children.iter().map(|child| child.name.as_str()).collect();
    assert_eq!(names, ["a", "b", "a", "l", "l"]);
}

#[test]
fn what_is_no_object_or_broken_is_refused() {
    for text in ["", "[]", "1", "\"x\"", "null", "{", "{}x", "{} {}", r#"{"a":01}"#, r#"{"a":"\ud800"}"#, "{'a':1}"] {
        assert!(matches!(parse(text.as_bytes()), Err(JsonError::Malformed { .. })), "{text}");
    }
    assert!(parse(b"{\"a\":\"\xff\"}").is_err());
}

#[test]
fn depth_and_count_are_bounded() {
    let nested = |depth: usize| format!("{}1{}", r#"{"a":"#.repeat(depth), "}".repeat(depth));
    assert!(parse(nested(DEPTH - 1).as_bytes()).is_ok());
    assert_eq!(parse(nested(DEPTH).as_bytes()), Err(JsonError::TooBig));
    let lists = format!(r#"{{"a":{}{}}}"#, "[".repeat(5000), "]".repeat(5000));
    assert_eq!(parse(lists.as_bytes()), Err(JsonError::TooBig));
    let wide = format!(r#"{{"a":[{}1]}}"#, "1,".repeat(ELEMENTS));
    assert_eq!(parse(wide.as_bytes()), Err(JsonError::TooBig));
}

#[test]
fn handlers_get_every_element_with_texts_as_strings() {
    let root = xml::parse(
        "<xml><MsgId>6074130599188426998</MsgId><EventKey></EventKey><L><item>1</item><item><b k='v'>x</b></item></L>\
         <M>t<n/></M><A p='q'/></xml>",
    )
    .unwrap();
    assert_eq!(
        message(&root).to_string(),
        r#"{"MsgId":"6074130599188426998","EventKey":"","L":{"item":["1",{"b":{"$":{"k":"v"},"_":"x"}}]},"M":{"_":"t","n":""},"A":{"$":{"p":"q"}}}"#
    );
}

#[test]
fn elements_with_the_same_name_are_grouped_and_nothing_else_moves() {
    let root = xml::parse("<xml><b/><a>1</a><c x='y'>t<d/></c><a>2</a><b>3</b></xml>").unwrap();
    assert_eq!(message(&root).to_string(), r#"{"b":["","3"],"a":["1","2"],"c":{"$":{"x":"y"},"_":"t","d":""}}"#);
    let back = xml::parse("<xml><b/><b>3</b><a>1</a><a>2</a><c x='y'>t<d/></c></xml>").unwrap();
    assert_eq!(tree_of(&message(&root)), back);
}

/// The tree that a message was made of, as far as the message shows it.
fn tree_of(message: &Value) -> Element {
    fn unfold(element: &mut Element) {
        for mut child in std::mem::take(&mut element.children) {
            match child.name.as_str() {
                "$" => element.attributes = child.children.drain(..).map(|child| (child.name, child.text)).collect(),
                "_" => element.text = child.text,
                _ => {
                    unfold(&mut child);
                    element.children.push(child);
                }
            }
        }
    }
    let mut root = parse(message.to_string().as_bytes()).unwrap();
    unfold(&mut root);
    root
}

/// The tree with elements of the same name grouped at the first.
fn grouped(element: &Element) -> Element {
    let first = |name: &str| element.children.iter().position(|child| child.name == name);
    let mut children = element.children.clone();
    children.sort_by_key(|child| first(&child.name));
    Element { children: children.iter().map(grouped).collect(), ..element.clone() }
}

/// What becomes of a JSON push: texts of numbers and words, one item for a list of one, an empty text for nothing.
fn normal(value: &Value) -> Value {
    let item = |item: &Value| if item.is_array() { json!({ "item": normal(item) }) } else { normal(item) };
    match value {
        Value::Null => json!(""),
        Value::Bool(_) | Value::Number(_) => Value::String(value.to_string()),
        Value::String(_) => value.clone(),
        Value::Array(items) => match items.as_slice() {
            [] => json!(""),
            [one] => item(one),
            many => many.iter().map(item).collect(),
        },
        Value::Object(map) if map.is_empty() => json!(""),
        Value::Object(map) => map.iter().map(|(name, value)| (name.clone(), normal(value))).collect(),
    }
}

/// Few names, so that names repeat, adjacent and apart.
fn document() -> impl Strategy<Value = Element> {
    let name = prop_oneof![4 => "[abcA]", 1 => "[A-Za-z\u{4e00}-\u{4e20}][A-Za-z0-9_.:-]{0,6}"];
    let text = prop_oneof![any::<String>(), "[\\x00-\\x20]{0,3}", "[0-9]{1,25}", "(\\]|>|<|&amp;|\\]\\]>|😀){0,6}"];
    let attributes = proptest::collection::btree_map("[a-z]{1,3}", text.clone(), 0..2);
    let leaf = (name, attributes, text).prop_map(|(name, attributes, text)| Element {
        attributes: attributes.into_iter().collect(),
        ..Element::with_text(name, text)
    });
    leaf.prop_recursive(4, 32, 6, |inner| {
        (inner.clone(), proptest::collection::vec(inner, 0..6))
            .prop_map(|(element, children)| Element { children, ..element })
    })
    .prop_map(|element| Element { name: "xml".to_owned(), ..element })
}

fn push() -> impl Strategy<Value = Value> {
    let number = prop_oneof![any::<u64>().prop_map(Number::from), any::<i64>().prop_map(Number::from)];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::Bool),
        number.prop_map(Value::Number),
        any::<f64>().prop_filter_map("a number of JSON", |number| Number::from_f64(number).map(Value::Number)),
        any::<String>().prop_map(Value::String),
    ];
    let object = |inner| proptest::collection::btree_map(" ?[$_a-cA-Z]{0,3}", inner, 0..5);
    let value = leaf.prop_recursive(4, 32, 5, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::Array),
            object(inner.boxed()).prop_map(|map| map.into_iter().collect()),
        ]
    });
    object(value.boxed()).prop_map(|map| map.into_iter().collect())
}

proptest! {
    /// XML, JSON, XML: the same document, elements with the same name grouped; identical where none are apart.
    #[test]
    fn a_document_comes_back_from_json_as_it_was(document in document()) {
        let read = xml::parse(&xml::render(&document)).unwrap();
        prop_assert_eq!(&read, &document);
        let back = xml::parse(&xml::render(&tree_of(&message(&read)))).unwrap();
        prop_assert_eq!(&back, &grouped(&document));
        prop_assert_eq!(message(&back), message(&document));
    }

    #[test]
    fn a_json_push_gives_its_own_values_as_texts(push in push()) {
        let tree = parse(push.to_string().as_bytes()).unwrap();
        let made = message(&tree);
        let Value::Object(entries) = &push else { panic!("an object") };
        let expected: Value = entries.iter().map(|(name, value)| (name.clone(), normal(value))).collect();
        prop_assert_eq!(&made, &expected);
        prop_assert_eq!(message(&parse(made.to_string().as_bytes()).unwrap()), made);
    }

    #[test]
    fn no_text_makes_the_parser_panic(text in "(\\{|\\}|\\[|\\]|\"|:|,|\"a\"|1|-|null|true|.){0,24}") {
        if let Ok(root) = parse(text.as_bytes()) {
            prop_assert_eq!(root.name, "xml");
        }
    }
}
