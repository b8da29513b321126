//! Tests of `xml`: what is kept, what is refused, and that rendering is the inverse of parsing.

use proptest::prelude::*;

use super::*;

fn leaf(name: &str, text: &str) -> Element {
    Element::with_text(name, text)
}

#[test]
fn reads_a_push_with_its_layout_dropped() {
    let root = parse(
        "<?xml version=\"1.0\"?>\n<xml><!-- c --><A><![CDATA[x y]]></A>\n<B>12</B>\n<C/>\n<D> </D><E><item>1</item>\n<item>2</item>\n</E>\n</xml>\n",
    )
    .unwrap();
    let list = Element { children: vec![leaf("item", "1"), leaf("item", "2")], ..Element::new("E") };
    let children = vec![leaf("A", "x y"), leaf("B", "12"), leaf("C", ""), leaf("D", " "), list];
    assert_eq!(root, Element { children, ..Element::new("xml") });
}

#[test]
fn text_is_joined_from_cdata_pieces_plain_text_and_references() {
    for (text, expected) in [
        ("<a><![CDATA[x]]]]><![CDATA[>y]]></a>", "x]]>y"),
        ("<a>1 &lt; 2 &amp;&amp; <![CDATA[ & ]]>&#20320;&#x1F;</a>", "1 < 2 &&  & 你\u{1f}"),
        ("<a>\n<![CDATA[x]]>\n</a>", "\nx\n"),
        ("<a><!-- c -->x<!-- d -->y</a>", "xy"),
        ("<a>&quot;&apos;&gt;</a>", "\"'>"),
        ("<a><![CDATA[<b>&amp;</b>]]></a>", "<b>&amp;</b>"),
        ("<a>\r\n</a>", "\r\n"),
    ] {
        assert_eq!(parse(text).unwrap().text, expected, "{text}");
    }
}

#[test]
fn control_characters_survive() {
    let all: String = (0..32).map(char::from).collect();
    let text = format!("<xml><Content><![CDATA[{all}]]></Content></xml>");
    assert_eq!(parse(&text).unwrap().text_of("Content"), Some(all.as_str()));
}

#[test]
fn a_doctype_or_processing_instruction_is_refused() {
    for text in [
        "<!DOCTYPE xml><xml/>",
        "<!DOCTYPE xml [<!ENTITY x SYSTEM \"file:///etc/passwd\">]><xml>&x;</xml>",
        "<xml><!DOCTYPE xml></xml>",
        "<?php echo 1 ?><xml/>",
        "<xml><?pi x?></xml>",
        "<xml/><?xml version=\"1.0\"?>",
        "<xml><?xml version=\"1.0\"?></xml>",
        "<?xml version=\"1.0\"?><?xml version=\"1.0\"?><xml/>",
    ] {
        assert!(matches!(parse(text), Err(XmlError::Instruction { .. })), "{text}: {:?}", parse(text));
    }
}

#[test]
fn billion_laughs_die_at_the_doctype_and_unknown_entities_without_one() {
    let mut laughs = String::from("<!DOCTYPE lolz [<!ENTITY lol \"lol\">");
    for level in 1..10 {
        let inner = format!("&lol{};", level - 1).repeat(10);
        laughs.push_str(&format!("<!ENTITY lol{level} \"{inner}\">"));
    }
    laughs.push_str("]><xml>&lol9;</xml>");
    assert!(matches!(parse(&laughs), Err(XmlError::Instruction { .. })));
    for text in ["<a>&lol;</a>", "<a>&nbsp;</a>", "<a>&#0;</a>", "<a>&#xD800;</a>", "<a>&#x110000;</a>", "<a>&;</a>"] {
        assert!(matches!(parse(text), Err(XmlError::Entity { .. })), "{text}: {:?}", parse(text));
    }
}

#[test]
fn anything_but_one_root_is_refused() {
    for text in
        ["", " ", "x", "<!-- c -->", "<a/><b/>", "<a></a><a></a>", "<a/>x", "x<a/>", "<a/>&lt;", "<a/><![CDATA[ ]]>"]
    {
        assert_eq!(parse(text), Err(XmlError::Root), "{text}");
    }
    assert!(parse(" <a/> <!-- c --> \n").is_ok());
}

#[test]
fn broken_grammar_is_refused() {
    for text in ["<a>", "<a><b></b>", "<xml><A>1</A>"] {
        assert_eq!(parse(text), Err(XmlError::Unclosed), "{text}");
    }
    for text in [
        "<a></b>",
        "</a>",
        "<a",
        "<a><![CDATA[x]]</a>",
        "<a>x & y</a>",
        "<1/>",
        "<a$/>",
        "< a/>",
        "<a x/>",
        "<a x=1/>",
        "<a x='1' x='2'/>",
        "<a x='&no;'/>",
        "<a><!-- </a>",
        "<a x='1></a>",
        "<>x</>",
    ] {
        assert!(matches!(parse(text), Err(XmlError::Malformed { .. })), "{text}: {:?}", parse(text));
    }
}

#[test]
fn depth_elements_and_attributes_are_bounded() {
    let nested = |depth: usize| format!("{}{}", "<a>".repeat(depth), "</a>".repeat(depth));
    assert!(parse(&nested(DEPTH)).is_ok());
    assert_eq!(parse(&nested(DEPTH + 1)), Err(XmlError::TooBig));
    assert_eq!(parse(&nested(80_000)), Err(XmlError::TooBig));
    let wide = |count: usize| format!("<a>{}</a>", "<b/>".repeat(count));
    assert!(parse(&wide(ELEMENTS - 1)).is_ok());
    assert_eq!(parse(&wide(ELEMENTS)), Err(XmlError::TooBig));
    let attributes = |count: usize| {
        let list: String = (0..count).map(|n| format!(" x{n}='1'")).collect();
        format!("<a{list}/>")
    };
    assert!(parse(&attributes(ATTRIBUTES)).is_ok());
    assert!(parse(&attributes(ATTRIBUTES + 1)).is_err());
}

#[test]
fn renders_as_wechat_writes() {
    let list = Element { children: vec![leaf("item", "a]]>b")], ..Element::new("List") };
    let root =
        Element { children: vec![leaf("ToUserName", "gh_1"), leaf("CreateTime", "12"), list], ..Element::new("xml") };
    assert_eq!(
        render(&root),
        "<xml><ToUserName><![CDATA[gh_1]]></ToUserName>\n<CreateTime>12</CreateTime>\n\
         <List><item><![CDATA[a]]]]><![CDATA[>b]]></item>\n</List>\n</xml>"
    );
}

#[test]
fn names_that_xml_cannot_have_are_mended() {
    for (name, repaired) in [
        (" OpenID", "OpenID"),
        (" 1 a ", "_1_a"),
        ("1a", "_1a"),
        ("a b<c", "a_b_c"),
        ("", "_"),
        (" ", "_"),
        ("名", "名"),
    ] {
        assert_eq!(parse(&render(&leaf(name, "x"))).unwrap().name, repaired, "{name}");
    }
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof![any::<String>(), "[\\x00-\\x20]{0,3}", "[0-9]{1,20}", "(\\]|>|<|&amp;|<!\\[CDATA\\[|\\]\\]>|x){0,8}",]
}

/// Found by fuzzing: a tag, even a DOCTYPE, stood in a value that we took and that others refuse.
#[test]
fn a_tag_in_the_value_of_an_attribute_is_refused() {
    for text in ["<xml><a b=\"<!DOCTYPE>\"/></xml>", "<xml a='<b>'></xml>", "<xml><a b=\"1\" c=\"<\"></a></xml>"] {
        assert!(matches!(parse(text), Err(XmlError::Malformed { .. })), "{text}: {:?}", parse(text));
    }
    assert_eq!(parse("<xml a=\"&lt;b>\"/>").unwrap().attributes, [("a".to_owned(), "<b>".to_owned())]);
}

/// Found by fuzzing: a DOCTYPE stood in the declaration.
#[test]
fn a_tag_in_the_declaration_is_refused() {
    let text = "<?xml version=\"1.0\" <!DOCTYPE encoding=\"UTF-8\"?><MsgId>25</MsgId>";
    assert!(matches!(parse(text), Err(XmlError::Malformed { .. })), "{text}");
    assert!(parse("<?xml version=\"1.0\" encoding=\"UTF-8\"?><MsgId>25</MsgId>").is_ok());
}

fn element() -> impl Strategy<Value = Element> {
    let name = "[A-Za-z_\u{4e00}-\u{4e20}][A-Za-z0-9_.:-]{0,6}";
    let attributes = proptest::collection::btree_map("[a-z]{1,3}", text(), 0..3);
    let leaf = (name, attributes, text()).prop_map(|(name, attributes, text)| Element {
        name,
        attributes: attributes.into_iter().collect(),
        text,
        children: Vec::new(),
    });
    leaf.prop_recursive(4, 24, 5, |inner| {
        (inner.clone(), proptest::collection::vec(inner, 0..5))
            .prop_map(|(element, children)| Element { children, ..element })
    })
}

proptest! {
    #[test]
    fn what_is_rendered_is_parsed_as_it_was(element in element()) {
        prop_assert_eq!(parse(&render(&element)).unwrap(), element);
    }

    #[test]
    fn no_text_makes_the_parser_panic(text in "(<|>|/|!|\\?|\\[CDATA\\[|\\]\\]>|a|xml|=|'|\"|&|;|#| |--|DOCTYPE|.){0,24}") {
        if let Ok(root) = parse(&text) {
            prop_assert_eq!(parse(&render(&root)).unwrap(), root);
        }
    }
}
