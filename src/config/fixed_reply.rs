//! Reads a fixed reply of a route and checks it against WeChat's rules; an error names the key that breaks one.

use super::error::Problem;
use super::file::{self, FixedReplySection, OrTable, Scalar, Tables};
use super::key_reader::KeyReader;
use super::value;
use crate::wechat::reply::{Article, MAX_TEXT};
use crate::wechat::{Reply, ReplyBody, ReplyError};

/// Reads the reply; `None` if WeChat would not accept it.
pub(super) fn read(reader: &KeyReader<'_>, fixed: &FixedReplySection) -> Option<ReplyBody> {
    let reply = Reply::new(body(reader, fixed)?);
    if matches!(&reply.body, ReplyBody::Text { content } if content.len() > MAX_TEXT) {
        reader.at("text").warn(format_args!("longer than {MAX_TEXT} bytes, so WeChat gets its beginning alone"));
    }
    match reply.check() {
        Ok(()) => Some(reply.body),
        Err(error) => {
            failing_key(reader, &reply.body, &error).report(Problem::Reply(error));
            None
        }
    }
}

fn body(reader: &KeyReader<'_>, fixed: &FixedReplySection) -> Option<ReplyBody> {
    let FixedReplySection { text, image, voice, video, music, news, transfer_customer_service: transfer } = fixed;
    let given = [
        text.as_ref().map(|text| ReplyBody::Text { content: text.0.clone() }),
        image.as_ref().map(|image| ReplyBody::Image { media_id: media_id(image) }),
        voice.as_ref().map(|voice| ReplyBody::Voice { media_id: media_id(voice) }),
        video.as_ref().map(self::video),
        music.as_ref().map(self::music),
        news.as_ref().map(|news| ReplyBody::News { articles: articles(news) }),
        transfer.as_ref().map(|transfer| self::transfer(&reader.at("transfer_customer_service"), transfer)),
    ];
    let mut given = given.into_iter().flatten();
    let one = given.next().filter(|_| given.next().is_none());
    if one.is_none() {
        let kinds = "exactly one of `text`, `image`, `voice`, `video`, `music`, `news` and `transfer_customer_service`";
        reader.report(Problem::expected("no reply, or several", kinds));
    }
    one
}

fn media_id(media: &OrTable<file::MediaSection>) -> String {
    match media {
        OrTable::Scalar(Scalar(id)) => id.clone(),
        OrTable::Table(media) => required(&media.media_id),
    }
}

fn video(video: &file::VideoSection) -> ReplyBody {
    let file::VideoSection { media_id, title, description } = video;
    ReplyBody::Video { media_id: required(media_id), title: optional(title), description: optional(description) }
}

fn music(music: &file::MusicSection) -> ReplyBody {
    ReplyBody::Music {
        title: optional(&music.title),
        description: optional(&music.description),
        music_url: optional(&music.music_url),
        hq_music_url: optional(&music.hq_music_url),
        thumb_media_id: optional(&music.thumb_media_id),
    }
}

fn articles(news: &Tables<file::NewsSection>) -> Vec<Article> {
    match news {
        Tables::One(news) => vec![article(news)],
        Tables::Several(list) => list.iter().map(article).collect(),
    }
}

fn article(news: &file::NewsSection) -> Article {
    Article {
        title: required(&news.title),
        description: Some(required(&news.description)),
        pic_url: Some(required(&news.pic_url)),
        url: Some(required(&news.url)),
    }
}

fn transfer(reader: &KeyReader<'_>, transfer: &OrTable<file::TransferSection>) -> ReplyBody {
    let kf_account = match transfer {
        OrTable::Scalar(Scalar(text)) => {
            reader.parse(text, value::yes);
            None
        }
        OrTable::Table(transfer) => optional(&transfer.kf_account),
    };
    ReplyBody::TransferCustomerService { kf_account }
}

/// The text of a required key; empty if it is missing, which [`Reply::check`] reports.
fn required(given: &Option<Scalar>) -> String {
    optional(given).unwrap_or_default()
}

fn optional(given: &Option<Scalar>) -> Option<String> {
    given.as_ref().map(|Scalar(text)| text.clone())
}

/// The key of the value that failed the check.
fn failing_key<'s>(reader: &KeyReader<'s>, body: &ReplyBody, error: &ReplyError) -> KeyReader<'s> {
    let kind = reader.at(body.msg_type());
    match (body, error) {
        (ReplyBody::Video { .. }, ReplyError::Empty("MediaId")) => kind.at("media_id"),
        (ReplyBody::Music { .. }, ReplyError::Empty("MusicUrl")) => kind.at("music_url"),
        (ReplyBody::News { articles }, ReplyError::Empty("Title")) => match articles.as_slice() {
            [_] => kind.at("title"),
            _ => {
                let untitled = |article: &Article| article.title.trim().is_empty();
                kind.nth(articles.iter().position(untitled).unwrap_or(0)).at("title")
            }
        },
        _ => kind,
    }
}
