//! What `docs/consumers.md` says, run as it stands there.

use std::fs;
use std::path::Path;
use std::process::Command;

use tidegate_testkit::redis::RedisServer;
use tidegate_testkit::{DEADLINE, Gateway, PostgresServer, Tool, WsClient, eventually};

/// The block of the page in this language that has these words.
pub(crate) fn block(language: &str, words: &str) -> String {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/consumers.md");
    let page = fs::read_to_string(page).unwrap();
    let begin = format!("```{language}\n");
    let blocks = page.split(&begin).skip(1).filter_map(|rest| rest.split_once("```")).map(|(block, _)| block);
    let mut found = blocks.filter(|block| block.contains(words));
    found.next().unwrap_or_else(|| panic!("no {language} with {words}")).to_owned()
}

/// The gateway has the rights that the page grants and no more; the application has its own.
#[test]
fn the_applications_of_the_page_publish_in_a_transaction() {
    let server = PostgresServer::start();
    server.sql(&block("sql", "CREATE TABLE"));
    server.sql("CREATE ROLE tidegate LOGIN");
    server.sql(&block("sql", "GRANT"));
    let directory = tempfile::tempdir().unwrap();
    let url = directory.path().join("url");
    fs::write(&url, server.url().replace("postgres@", "tidegate@")).unwrap();
    let config =
        block("toml", "consumers.outboxes").replace("/run/secrets/outbox-url", url.to_str().unwrap());
    let gateway = Gateway::builder().config(&config).start();
    let mut client = WsClient::connect(gateway.public(), "/ws?envelope=json&channel=orders:17");
    let script = |name: &str, text: String| {
        let path = directory.path().join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let python = script("paid.py", block("python", "psycopg"));
    let node = script("sent.cjs", block("js", "require(\"pg\")"));
    for (tool, state) in [(Tool::python(&python), "paid"), (Tool::node(&node), "sent")] {
        let mut process = tool.environment("DATABASE_URL", server.url()).spawn();
        let told = client.expect_json();
        assert_eq!((&told["event"], &told["data"]["state"]), (&state.into(), &state.into()), "{told}");
        assert_eq!(process.wait(DEADLINE).code, Some(0));
    }
    // What was set aside is seen, and tried again.
    server.sql("INSERT INTO tidegate_outbox (channel, data) VALUES ('no channel', '1')");
    let aside = block("sql", "SELECT id");
    let (select, again) = aside.split_once(";\n").unwrap();
    eventually("it is set aside", DEADLINE, || server.sql(select).contains("no channel"));
    server.sql(again);
    gateway.eventually_metric("tidegate_consumer_set_aside_total", &[], |aside| aside >= 2.0);
}

#[test]
fn the_line_for_redis_publishes() {
    let redis = RedisServer::start();
    let config = block("toml", "consumers.streams").replace("redis://redis:6379/0", &redis.url());
    let gateway = Gateway::builder().config(&config).start();
    let mut client = WsClient::connect(gateway.public(), "/ws?envelope=json&channel=orders:17");
    let port = redis.address().port().to_string();
    let line = block("sh", "XADD").replace("redis-cli", &format!("redis-cli -p {port}"));
    let ran = Command::new("sh").args(["-c", &line]).output().unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    let told = client.expect_json();
    assert_eq!((&told["event"], &told["data"]["state"]), (&"paid".into(), &"paid".into()), "{told}");
}
