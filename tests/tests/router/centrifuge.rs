//! A real client of Centrifugo's protocol behind a router, whose node is killed, and the next one drained.

use serde_json::Value;
use tidegate_testkit::{DEADLINE, Tool};

use crate::site::Site;

#[test]
fn a_client_of_centrifugo_recovers_when_its_node_is_killed_and_when_it_drains() {
    let mut site = Site::start(3);
    let mut names = vec!["g1", "g2", "g3"];
    let script = Tool::node("centrifuge/recovery.cjs").environment("CODES", "[1,3001]");
    let mut script = script.environment("ROUTER", format!("http://{}", site.router.public)).spawn();
    for round in 0..2 {
        let name = script.wait_line("it is on a node", DEADLINE, |line| {
            let line: Value = serde_json::from_str(line).ok()?;
            (line["ready"] == round).then(|| line["node"].as_str().map(str::to_owned))?
        });
        let at = names.iter().position(|own| *own == name).unwrap();
        names.remove(at);
        let gateway = site.gateways.remove(at);
        if round == 0 {
            gateway.kill()
        } else {
            gateway.terminate()
        };
    }
    let exit = script.wait(DEADLINE * 2);
    assert_eq!(exit.code, Some(0), "{exit}");
}
