//! The frame of every page: head, navigation, foot, language and colours; and how texts of others are drawn.

use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::fence::FormToken;
use super::session::cookie;
use super::{SCRIPT, STYLE, version};
use crate::admin::caller::Caller;
use crate::clock::UnixMillis;
use crate::escape;

/// A text in English and in Chinese.
pub(super) type Words = (&'static str, &'static str);

pub(super) const VIEWER: Words = ("Your role is viewer: you may only read.", "您的角色是只读用户，只能查看。");
pub(super) const OLD_FORM: Words = (
    "This form is not from a current page. Go back, reload the page and try again.",
    "表单不是来自当前页面，请返回并刷新页面后重试。",
);
pub(super) const OTHER_PAGE: Words =
    ("The request came from another web page, or says nothing of its origin.", "请求来自其他网页，或没有说明来源。");
pub(super) const OTHER_HOST: Words = (
    "This name is not known: open the console by an address, or add the name to admin.console_hosts.",
    "这个域名不在许可之列：请用 IP 地址打开，或把域名加入 admin.console_hosts。",
);

/// The most of a text that is drawn, in bytes.
const MOST: usize = 64 << 10;
/// The most of a title, in characters.
const TITLE: usize = 80;

/// What a page needs to know of its reader.
#[derive(Clone)]
pub(super) struct Frame {
    is_chinese: bool,
    /// `light` or `dark`; empty: as the system.
    theme: String,
    pub(super) caller: Option<Caller>,
    form: String,
    /// With its query: where a link in the foot leads back to.
    path: String,
}

impl Frame {
    pub(super) fn of(request: &Request) -> Self {
        Self { caller: Some(Caller::of(request)), ..Self::bare(request) }
    }

    /// Without navigation: nobody is known.
    pub(super) fn bare(request: &Request) -> Self {
        let headers = request.headers();
        let form = request.extensions().get::<FormToken>().map(|token| token.0.clone()).unwrap_or_default();
        let theme = cookie(headers, "wxrelay_theme").filter(|theme| ["light", "dark"].contains(theme));
        Self {
            is_chinese: is_chinese(headers),
            theme: theme.unwrap_or_default().to_owned(),
            caller: None,
            form,
            path: request.uri().path_and_query().map_or_else(String::new, |path| path.as_str().to_owned()),
        }
    }

    pub(super) fn is_viewer(&self) -> bool {
        self.caller.as_ref().is_none_or(Caller::is_viewer)
    }

    /// The text in the reader's language.
    pub(super) fn say(&self, en: &'static str, zh: &'static str) -> &'static str {
        if self.is_chinese { zh } else { en }
    }

    pub(super) fn form_token(&self) -> Markup {
        html! { input type="hidden" name="form" value=(self.form); }
    }

    /// A button in a form of its own, which sends these fields.
    pub(super) fn button(&self, to: &str, action: &str, label: &str, fields: &[(&str, &str)]) -> Markup {
        html! {
            form method="post" action=(to) {
                (self.form_token())
                input type="hidden" name="action" value=(action);
                @for (name, value) in fields { input type="hidden" name=(name) value=(value); }
                button data-action=(action) { (label) }
            }
        }
    }

    /// Asks before something is done to many: what, how it is undone, and the button with the count.
    pub(super) fn confirm(
        &self,
        to: &str,
        action: &str,
        question: &str,
        note: &str,
        fields: &[(&str, &str)],
    ) -> Response {
        let fields: Vec<_> = fields.iter().copied().chain([("sure", "yes")]).collect();
        self.page(
            self.say("Are you sure?", "请确认"),
            &html! {
                h1 { (self.say("Are you sure?", "请确认")) }
                p #question { (text(question)) }
                p { (note) }
                div.actions {
                    (self.button(to, action, self.say("Yes, do it", "确认执行"), &fields))
                    a href=(to) { (self.say("No, go back", "返回")) }
                }
            },
        )
    }

    /// Says what was done, or why not, and leads back.
    pub(super) fn result(&self, to: &str, what: &str) -> Response {
        self.page(
            self.say("Result", "结果"),
            &html! {
                h1 { (self.say("Result", "结果")) }
                p #result role="status" { (text(what)) }
                p { a href=(to) { (self.say("Back", "返回")) } }
            },
        )
    }

    pub(super) fn refusal(&self, status: StatusCode, why: Words) -> Response {
        self.failure(status, self.say(why.0, why.1))
    }

    /// Why there is no page.
    pub(super) fn failure(&self, status: StatusCode, why: &str) -> Response {
        let title = self.say("Not done", "未能完成");
        let mut page = self.page(title, &html! { h1 { (title) } p #failure role="alert" { (text(why)) } });
        *page.status_mut() = status;
        page
    }

    pub(super) fn page(&self, title: &str, body: &Markup) -> Response {
        let title: String = escape::line(title).chars().take(TITLE).collect();
        let back = percent(&self.path);
        let language = if self.is_chinese { "zh-CN" } else { "en" };
        let (other, other_name) = if self.is_chinese { ("en", "English") } else { ("zh", "中文") };
        let page = html! {
            (DOCTYPE)
            html lang=(language) data-theme=[Some(&self.theme).filter(|theme| !theme.is_empty())] {
                head {
                    meta charset="utf-8";
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    title { (title) " - wxrelay" }
                    link rel="stylesheet" href={ "/console/style.css" (version(STYLE)) };
                    @if self.caller.is_some() { script type="module" src={ "/console/app.js" (version(SCRIPT)) } {} }
                }
                body {
                    a.skip href="#main" { (self.say("Skip to the content", "跳到正文")) }
                    @if let Some(caller) = &self.caller { (self.head(caller)) }
                    main #main tabindex="-1" { (body) }
                    footer {
                        a href={ "/console/look?lang=" (other) "&back=" (back) } lang=[(other == "zh").then_some("zh-CN")] { (other_name) }
                        a href={ "/console/look?theme=light&back=" (back) } { (self.say("Light", "浅色")) }
                        a href={ "/console/look?theme=dark&back=" (back) } { (self.say("Dark", "深色")) }
                        @if self.caller.is_some() { button #keys type="button" hidden { (self.say("Keys off", "关闭快捷键")) } }
                    }
                }
            }
        };
        Html(page.into_string()).into_response()
    }

    fn head(&self, caller: &Caller) -> Markup {
        let pages = [
            ("/console/", self.say("Now", "概览")),
            ("/console/dead", self.say("Dead letters", "死信")),
            ("/console/events", self.say("Events", "事件")),
            ("/console/live", self.say("Live", "实时")),
        ];
        let path = self.path.split('?').next().unwrap_or_default();
        html! {
            header {
                strong { "wxrelay" }
                nav aria-label=(self.say("Pages", "页面")) {
                    @for (to, name) in pages { a href=(to) aria-current=[(to == path).then_some("page")] { (name) } }
                }
                form.search action="/console/events" role="search" {
                    label for="search" { (self.say("OpenID or event id", "OpenID 或事件 id")) }
                    input #search name="q" type="search" maxlength="500";
                    button { (self.say("Find", "查找")) }
                }
                span.who {
                    (caller.name) " (" (if caller.is_viewer() { self.say("viewer", "只读") } else { self.say("operator", "操作员") }) ")"
                }
                @if !caller.is_local() {
                    form method="post" action="/console/logout" {
                        (self.form_token())
                        button { (self.say("Log out", "退出")) }
                    }
                }
            }
        }
    }
}

fn is_chinese(headers: &HeaderMap) -> bool {
    if let Some(chosen) = cookie(headers, "wxrelay_lang") {
        return chosen == "zh";
    }
    let accepted = headers.get(header::ACCEPT_LANGUAGE).and_then(|value| value.to_str().ok());
    accepted.is_some_and(|languages| languages.trim_start().to_ascii_lowercase().starts_with("zh"))
}

/// A text of others: on one line, with characters that are not seen written out, isolated from the direction of ours.
pub(super) fn text(content: &str) -> Markup {
    html! { bdi { (escape::line(cut(content))) } }
}

/// The same, folded, with its line breaks.
pub(super) fn folded(summary: &str, content: &str) -> Markup {
    html! {
        details {
            summary { (summary) }
            pre { @for line in cut(content).lines() { (escape::line(line)) "\n" } }
        }
    }
}

fn cut(content: &str) -> &str {
    let mut end = content.len().min(MOST);
    while !content.is_char_boundary(end) {
        end -= 1;
    }
    &content[..end]
}

/// A moment, which the script shows in the browser's zone.
pub(super) fn time(at: UnixMillis) -> Markup {
    let text = at.to_string();
    html! { time datetime=(text) { (text) } }
}

/// A drawing of `chart.rs`, which escapes its texts itself.
pub(super) fn drawing(svg: String) -> Markup {
    PreEscaped(svg)
}

/// A text within a path or a query.
pub(super) fn percent(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
}

/// The page of a target.
pub(super) fn target_path(name: &str) -> String {
    format!("/console/targets/{}", percent(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hostile_text_is_drawn_as_text() {
        let drawn = text("<script>alert(1)</script>\u{202e}\"'&\u{1b}").into_string();
        assert_eq!(drawn, "<bdi>&lt;script&gt;alert(1)&lt;/script&gt;\\u202e&quot;'&amp;\\u001b</bdi>");
        let folded = folded("text", "a\n</pre><img src=x onerror=alert(1)>").into_string();
        assert!(folded.contains("a\n&lt;/pre&gt;&lt;img"), "{folded}");
        assert_eq!(cut(&"待".repeat(MOST)).len(), MOST / 3 * 3, "at the end of a character");
    }

    #[test]
    fn the_language_is_that_of_the_cookie_or_of_the_browser() {
        let chinese = |name: &'static str, value: &str| {
            is_chinese(&HeaderMap::from_iter([(name.parse().unwrap(), value.parse().unwrap())]))
        };
        assert!(chinese("accept-language", "zh-CN,zh;q=0.9") && chinese("cookie", "a=b; wxrelay_lang=zh"));
        assert!(!chinese("accept-language", "en,zh;q=0.5") && !chinese("cookie", "wxrelay_lang=en"));
    }
}
