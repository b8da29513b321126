//! What a request costs: metric handles, the clock skew gauge and the failure budget.

use std::time::Duration;

use super::*;
use crate::queue::{Faults, Settings};
use crate::telemetry::OpenIds;
use crate::wechat::{LongText, Mode, SealedPush};
use crate::{route, secret::Secret};

const HOUR: Duration = Duration::from_secs(3600);
const PATH: &str = "/wechat";

struct PipelineFixture {
    pipeline: Arc<Pipeline>,
    metrics: Arc<Metrics>,
    _folder: tempfile::TempDir,
}

impl PipelineFixture {
    fn new(stall: Duration, fails: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let settings = Settings::for_tests(folder.path());
        let faults = Faults { stall: Box::new(move || stall), fails: Box::new(move || fails) };
        let queue = Queue::simulated(&settings, drop, faults).unwrap();
        let window = ReplyWindow { length: Duration::from_secs(14), failures: 4, period: Duration::from_secs(300) };
        let account = Account {
            name: "shop".into(),
            path: PATH.to_owned(),
            credentials: credentials("weixin"),
            max_skew: Some(Duration::from_secs(300)),
            reply_budget: Duration::from_millis(4500),
            reply_window: Some(window),
            allow_from: None,
            long_text: LongText::Cut,
            held: None,
            routes: route::Table::mode2(Vec::new(), Vec::new(), Vec::new()),
        };
        let metrics = Metrics::new();
        let accounts = Accounts::new(vec![account], OpenIds::Hash, &metrics);
        let pipeline = Arc::new(Pipeline::new(accounts, queue, metrics.clone(), Tail::default(), 1 << 20));
        Self { pipeline, metrics, _folder: folder }
    }

    /// Posts a push with this token and a timestamp that differs from now by this many seconds.
    async fn push(&self, token: &str, skew: i64) -> StatusCode {
        let clear = "<xml><ToUserName>gh</ToUserName><FromUserName>o1</FromUserName></xml>";
        let salt = Salt::new(UnixMillis::now().seconds() + skew, [7; 24]);
        let SealedPush { query, body } = credentials(token).push(clear, "o1", &salt);
        self.post(&format!("{PATH}?{query}"), body).await
    }

    async fn post(&self, target: &str, body: String) -> StatusCode {
        let request = Request::post(target).header("host", "relay.test").body(Full::<Bytes>::from(body)).unwrap();
        self.pipeline.clone().handle(request, None).await.unwrap().status()
    }

    /// How many failures the budget of the account counts.
    fn failures(&self) -> usize {
        self.pipeline.accounts.load().at(PATH).unwrap().budget.failures()
    }

    fn skew(&self) -> f64 {
        self.metrics.clock_skew.get()
    }
}

fn credentials(token: &str) -> Credentials {
    Credentials {
        app_id: "wx1".into(),
        token: Secret::new(token),
        previous_token: None,
        aes_key: None,
        previous_aes_key: None,
        mode: Mode::Plaintext,
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_to_an_unknown_path_makes_no_metric_handles() {
    let relay = PipelineFixture::new(Duration::ZERO, false);
    assert_eq!(relay.post("/other", String::new()).await, StatusCode::NOT_FOUND);
    let text = relay.metrics.render();
    let nameless: Vec<_> = text.lines().filter(|line| line.contains(r#"account="""#)).collect();
    assert_eq!(nameless, [r#"wxrelay_pushes_total{account="",kind="none",result="unknown_path"} 1"#]);
}

#[tokio::test(start_paused = true)]
async fn the_skew_of_verified_pushes_alone_is_measured_fresh_or_not() {
    let relay = PipelineFixture::new(Duration::ZERO, false);
    assert_eq!(relay.push("guessed", 200).await, StatusCode::FORBIDDEN);
    assert_eq!(relay.skew(), 0.0);
    assert_eq!(relay.push("weixin", -1000).await, StatusCode::FORBIDDEN, "stale");
    assert!((-1002.0..=-1000.0).contains(&relay.skew()), "{}", relay.skew());
    assert_eq!(relay.push("weixin", 200).await, StatusCode::OK);
    assert!((198.0..=200.0).contains(&relay.skew()), "{}", relay.skew());
    assert_eq!(relay.failures(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_verified_push_that_fails_is_charged_where_its_answer_is_decided() {
    let relay = PipelineFixture::new(Duration::ZERO, true);
    assert_eq!(relay.push("weixin", 0).await, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(relay.failures(), 1);
    assert_eq!(relay.push("guessed", 0).await, StatusCode::FORBIDDEN);
    assert_eq!(relay.failures(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_verified_push_whose_client_hangs_up_is_charged() {
    let relay = PipelineFixture::new(HOUR, false);
    let hung_up = tokio::time::timeout(Duration::from_secs(1), relay.push("weixin", 0)).await;
    assert!(hung_up.is_err(), "no answer yet");
    assert_eq!(relay.failures(), 1);
    assert!(relay.metrics.render().contains(r#"result="hung_up"} 1"#));
}
