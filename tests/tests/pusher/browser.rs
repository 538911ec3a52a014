//! pusher-js as pages load it, in headless Chromium.

use tidegate_testkit::{Tool, chromium_path};

use crate::script::run;
use crate::site::Site;

#[test]
fn pusher_js_in_chromium_subscribes_receives_and_is_a_member() {
    let site = Site::start(2);
    let script = Tool::node("pusher/browser.cjs").environment("CHROMIUM", chromium_path());
    run(script, "browser.cjs", &site.gateways);
}
