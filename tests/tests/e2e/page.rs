//! The first page in headless Chromium: WebSocket and EventSource, on a phone and in the dark.

use reqwest::Method;
use tidegate_testkit::{DEADLINE, Gateway, Tool, chromium_path, target_directory};

#[test]
fn the_first_page_subscribes_and_publishes_over_both_transports() {
    let gateway = Gateway::start();
    let pictures = target_directory();
    let script = Tool::node("page.cjs")
        .gateway(gateway.public())
        .environment("CHROMIUM", chromium_path())
        .environment("PICTURES", &pictures);
    let exit = script.spawn().wait(DEADLINE * 2);
    assert_eq!(exit.code, Some(0), "{exit}");
    for picture in
        ["page-phone-light.png", "page-phone-dark.png", "page-desktop-light.png", "page-desktop-dark.png"]
    {
        let length = std::fs::metadata(pictures.join(picture)).map(|file| file.len()).unwrap_or(0);
        assert!(length > 5_000, "{picture} has {length} bytes");
    }
    // The browser is gone, and so are its connections.
    gateway.eventually_connections(0);
}

#[test]
fn production_has_no_page() {
    let gateway = Gateway::builder().production().start();
    let rest = gateway.rest();
    rest.get("/").expect_problem(404);
    let answer = rest.send(Method::GET, "/", &[("accept", "text/html,*/*;q=0.8")], None);
    assert_eq!(answer.status, 404);
    assert!(answer.text().contains("<code>/ws</code>"), "{}", answer.text());
}
