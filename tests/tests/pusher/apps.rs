//! Several apps in one deployment: nothing of one is seen in another, and their list is changed while they are served.

use tidegate_testkit::{Gateway, Tool};

use crate::script::run;

#[test]
fn apps_are_apart_and_their_file_is_read_again() {
    let builder = Gateway::builder();
    let file = builder.file("apps.toml", b"[apps.two]\nkey = \"key-two\"\nsecret = \"secret-two\"\n");
    let gateway = builder.config(&format!("apps_file = {file:?}\n")).start();
    let script = Tool::node("pusher/apps.cjs").environment("APPS_FILE", &file);
    run(script, "apps.cjs", &[gateway]);
}
