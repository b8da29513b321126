//! Parses an alarm that WeChat sends to its alarm group about a failed push: `[OpenID=..][Stamp=..][Event=..]`. Pure.
//!
//! WeChat documents no format for alarms, so the parser is lenient: one line or the whole alarm, brackets of any kind
//! or none, any case, parts in any order or missing.

use std::time::Duration;

use crate::clock::UnixMillis;

/// How far from the stamp a user's push may be: the default `max_skew`.
const AROUND: Duration = Duration::from_secs(600);
/// The same if the alarm names no user: WeChat tries for 15 s.
const CLOSE_AROUND: Duration = Duration::from_secs(30);

/// The parts of an alarm that the text contains.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Alarm {
    /// The user whose push failed.
    pub openid: Option<String>,
    /// The time of the push, by WeChat's clock.
    pub stamp: Option<UnixMillis>,
    /// Whether that is the push's own time, not the minutes of the whole alarm.
    pub is_exact: bool,
    /// The kind of the push, in the alarm's own spelling: `Click`, `UnSubscribe`, `Scan QRCode`.
    pub event: Option<String>,
    /// The AppID of the account that it is about.
    pub app_id: Option<String>,
}

/// The UTC offset of China's time in seconds: dates in alarms have no offset of their own.
const CHINA: i64 = 8 * 3600;

/// What a kind in an alarm's spelling stands for.
#[derive(Clone, Copy, Debug)]
enum AlarmKind {
    Event(&'static str),
    /// A scan, or the follow that a scan led to.
    Scan,
    /// A tap on a menu's link, or on its mini program.
    View,
    Message(&'static str),
    AnyMessage,
}

/// The names that alarms have for some kinds, beside the kind's own name; without case, blanks and punctuation. From
/// alarms that operators published.
const KINDS: [(&[&str], AlarmKind); 10] = [
    (&["scanqrcode", "qrcode", "scanqr", "扫码", "扫描二维码"], AlarmKind::Scan),
    (&["follow", "关注"], AlarmKind::Event("subscribe")),
    (&["unfollow", "取消关注", "取关"], AlarmKind::Event("unsubscribe")),
    (&["menuclick", "clickmenu", "点击菜单"], AlarmKind::Event("click")),
    (&["viewmenu", "menuview", "clickurl"], AlarmKind::View),
    (&["reportlocation", "uploadlocation", "location"], AlarmKind::Event("location")),
    (&["textmsg", "textmessage", "recvtext"], AlarmKind::Message("text")),
    (&["imagemsg", "imagemessage", "picmsg"], AlarmKind::Message("image")),
    (&["voicemsg", "voicemessage"], AlarmKind::Message("voice")),
    (&["msg", "message", "recvmsg", "usermessage", "消息"], AlarmKind::AnyMessage),
];

impl Alarm {
    /// Parses an alarm, or any part of one. `Stamp` has precedence over the date of the whole alarm.
    pub fn parse(text: &str) -> Self {
        let (mut alarm, mut date) = (Self::default(), None);
        for part in text.split(|c| "[]【】［］〔〕「」\n\r".contains(c)) {
            let Some((key, value)) = part.split_once(['=', '＝', ':', '：']) else { continue };
            // Before the key there may be a title, as in "错误样例: OpenID=..".
            let key = key.trim().rsplit([' ', ',', ';', '，', '；']).next().unwrap_or_default().to_ascii_lowercase();
            let value = value.trim().trim_matches(|c| "\"'“”‘’".contains(c));
            if value.is_empty() {
                continue;
            }
            match key.as_str() {
                "openid" | "fromusername" => set(&mut alarm.openid, word(value)),
                "stamp" | "timestamp" | "createtime" => alarm.stamp = alarm.stamp.or_else(|| moment(value)),
                "event" | "msg" | "msgtype" => set(&mut alarm.event, words(value)),
                "appid" => set(&mut alarm.app_id, word(value)),
                "时间" | "time" => date = date.or_else(|| moment(value)),
                // A title whose brackets were lost: "错误样例: OpenID=.. Stamp=..".
                _ => alarm.fill(Self::parse_loose(value)),
            }
            // "OpenID=oX Stamp=1" in one bracket, or in none.
            alarm.fill(Self::parse_loose(value));
        }
        alarm.is_exact = alarm.stamp.is_some();
        alarm.stamp = alarm.stamp.or(date);
        alarm
    }

    /// The parts of a text that has no brackets.
    fn parse_loose(text: &str) -> Self {
        let mut alarm = Self::default();
        for part in text.split([' ', ',', ';', '&', '，', '；']).filter(|part| part.contains(['=', '＝'])) {
            let Some((key, value)) = part.split_once(['=', '＝']) else { continue };
            match key.to_ascii_lowercase().as_str() {
                "openid" => set(&mut alarm.openid, word(value)),
                "stamp" => alarm.stamp = alarm.stamp.or_else(|| moment(value)),
                "event" => set(&mut alarm.event, word(value)),
                "appid" => set(&mut alarm.app_id, word(value)),
                _ => {}
            }
        }
        alarm
    }

    /// Sets each part that is still missing to the other's.
    fn fill(&mut self, other: Self) {
        let Self { openid, stamp, is_exact: _, event, app_id } = other;
        set(&mut self.openid, openid);
        set(&mut self.event, event);
        set(&mut self.app_id, app_id);
        self.stamp = self.stamp.or(stamp);
    }

    /// Whether an event with these names can be the one that the alarm is about. An alarm without a kind can be about any.
    pub fn is_about(&self, msg_type: &str, event: &str, event_key: &str) -> bool {
        let Some(named) = self.event.as_deref().map(letters) else { return true };
        let is_event = msg_type.eq_ignore_ascii_case("event");
        let own = letters(if is_event { event } else { msg_type });
        if named == own || named == letters(msg_type) {
            return true;
        }
        let known = KINDS.iter().find(|(names, _)| names.contains(&&*named));
        known.is_some_and(|(_, kind)| match kind {
            AlarmKind::Event(name) => is_event && own == *name,
            AlarmKind::Scan => is_event && (own == "scan" || own == "subscribe" && event_key.starts_with("qrscene_")),
            AlarmKind::View => is_event && own.starts_with("view"),
            AlarmKind::Message(name) => !is_event && own == *name,
            AlarmKind::AnyMessage => !is_event,
        })
    }

    /// The first moment at which its push may have been received, and the moment after the last; `None` without a stamp.
    pub fn window(&self) -> Option<(UnixMillis, UnixMillis)> {
        let around = if self.openid.is_some() { AROUND } else { CLOSE_AROUND };
        let around = i64::try_from(around.as_millis()).unwrap_or(i64::MAX);
        self.stamp.map(|stamp| (UnixMillis(stamp.0.saturating_sub(around)), UnixMillis(stamp.0.saturating_add(around))))
    }

    /// Whether it has the user or the time: without either, no event can be found.
    pub fn names_a_push(&self) -> bool {
        self.openid.is_some() || self.stamp.is_some()
    }
}

fn set(slot: &mut Option<String>, value: Option<String>) {
    if slot.is_none() {
        *slot = value;
    }
}

/// The first word: what follows it is the next part, if brackets were lost.
fn word(text: &str) -> Option<String> {
    let word = text.split([' ', ',', ';', '&', '，', '；', '\t']).next().unwrap_or_default();
    (!word.is_empty()).then(|| word.to_owned())
}

/// The words up to what looks like the next part.
fn words(text: &str) -> Option<String> {
    let first = text.split([',', ';', '&', '，', '；', '\t']).next().unwrap_or_default();
    let words: Vec<_> = first.split_whitespace().take_while(|word| !word.contains(['=', '＝', ':', '：'])).collect();
    (!words.is_empty()).then(|| words.join(" "))
}

/// A kind's name without case, blanks and punctuation, in which alarms differ from pushes.
fn letters(name: &str) -> String {
    name.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
}

/// Seconds or milliseconds since 1970, or a date: with an offset, or in China's time.
fn moment(text: &str) -> Option<UnixMillis> {
    if let Ok(moment) = text.trim().parse::<jiff::Timestamp>() {
        return Some(UnixMillis(moment.as_millisecond()));
    }
    let date: String = text.chars().take(19).collect();
    if let Ok(date) = date.trim().replace('/', "-").parse::<jiff::civil::DateTime>() {
        let utc = date.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp().as_millisecond();
        return Some(UnixMillis(utc - CHINA * 1000));
    }
    match word(text)?.parse().ok()? {
        seconds @ 1_000_000_000..=9_999_999_999 => Some(UnixMillis(seconds * 1000)),
        millis @ 1_000_000_000_000..=9_999_999_999_999 => Some(UnixMillis(millis)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alarm(openid: &str, stamp: i64, event: &str) -> Alarm {
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let stamp = (stamp != 0).then_some(UnixMillis(stamp * 1000));
        Alarm { openid: some(openid), stamp, is_exact: stamp.is_some(), event: some(event), app_id: None }
    }

    #[test]
    fn a_line_is_read_whatever_its_brackets_and_whatever_is_missing() {
        let whole = alarm("oAbC-_1", 1_435_922_000, "Click");
        for text in [
            "[OpenID=oAbC-_1][Stamp=1435922000][Event=Click]",
            "[[OpenID=oAbC-_1][Stamp=1435922000][Event=Click]]",
            "【OpenID=oAbC-_1】【Stamp=1435922000】【Event=Click】",
            "[Event=Click] [IP=203.205.140.29] [openid = oAbC-_1] [STAMP=1435922000000]",
            "错误样例: [OpenID=oAbC-_1][Stamp=1435922000][3rdUrl=http%3A%2F%2Fh][Event=Click]",
            "OpenID=oAbC-_1 Stamp=1435922000 Event=Click",
            "OpenID=oAbC-_1, Stamp=1435922000, Event=Click",
            "错误样例：OpenID=oAbC-_1&Stamp=1435922000&Event=Click",
            "[OpenID=oAbC-_1][Stamp=2015-07-03 19:13:20][Event=Click]",
        ] {
            assert_eq!(Alarm::parse(text), whole, "{text}");
        }
        assert_eq!(Alarm::parse("[OpenID=o1]"), alarm("o1", 0, ""));
        assert_eq!(Alarm::parse("[Stamp=1435922000]"), alarm("", 1_435_922_000, ""));
        for nothing in ["", "[]", "hello", "[Stamp=soon]", "[Event=Click]"] {
            assert!(!Alarm::parse(nothing).names_a_push(), "{nothing}");
        }
    }

    #[test]
    fn a_kind_is_found_under_the_alarms_name_for_it_and_no_other() {
        for (named, msg_type, event, key, is_about) in [
            ("Scan QRCode", "event", "SCAN", "1", true),
            ("Scan QRCode", "event", "subscribe", "qrscene_1", true),
            ("Scan QRCode", "event", "subscribe", "", false),
            ("Scan QRCode", "event", "CLICK", "1", false),
            ("UnSubscribe", "event", "unsubscribe", "", true),
            ("UnSubscribe", "event", "SCAN", "", false),
            ("UnSubscribe", "event", "subscribe", "", false),
            ("Subscribe", "event", "unsubscribe", "", false),
            ("Click", "event", "CLICK", "menu", true),
            ("Template Send Job Finish", "event", "TEMPLATESENDJOBFINISH", "", true),
            ("Location", "event", "LOCATION", "", true),
            ("Text", "text", "", "", true),
            ("Message", "image", "", "", true),
            ("Message", "event", "CLICK", "", false),
            ("Something New", "event", "CLICK", "", false),
        ] {
            let alarm = Alarm::parse(&format!("[OpenID=o1][Stamp=1435922000][Event={named}][ip=]"));
            assert_eq!(alarm.event.as_deref(), Some(named));
            assert_eq!(alarm.is_about(msg_type, event, key), is_about, "{named}: {msg_type} {event} {key}");
        }
        assert_eq!(Alarm::parse("OpenID=o1 Event=Click 次数: 5").event.as_deref(), Some("Click"));
        assert!(Alarm::parse("[OpenID=o1]").is_about("event", "SCAN", ""), "any, where the alarm names none");
    }

    #[test]
    fn a_whole_alarm_is_read_and_its_stamp_wins_over_its_date() {
        let text = "Appid: wx0123456789abcdef\n昵称: 小店\n时间: 2015-07-03 19:15:00\n\
                    内容: 微信服务器向公众号推送消息或事件后，得到的回应不合法\n次数: 5分钟 1次\n\
                    错误样例: [OpenID=o1][Stamp=1435922000][Event=UnSubscribe]\n报警排查指引，请见: http://url.cn/ab0jnP";
        let app_id = Some("wx0123456789abcdef".to_owned());
        assert_eq!(Alarm::parse(text), Alarm { app_id, ..alarm("o1", 1_435_922_000, "UnSubscribe") });
        let date = Alarm::parse(&text.replace("[Stamp=1435922000]", ""));
        assert_eq!(date.stamp, Some(UnixMillis((1_435_922_000 + 100) * 1000)));
    }
}
