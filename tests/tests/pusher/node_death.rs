//! A node that is killed under 500 presence members: the others are told of each once.

use serde_json::Value;
use tidegate_testkit::{DEADLINE, Tool};

use crate::script::{finish, start};
use crate::site::Site;

#[test]
fn who_stays_is_told_of_each_member_of_a_killed_node_once() {
    let mut site = Site::start(3);
    let tool = Tool::node("pusher/crowd.cjs").environment("MEMBERS", "500");
    let mut script = start(tool, &site.gateways);
    script.wait_line("all members are in", DEADLINE * 2, |line| {
        serde_json::from_str::<Value>(line).ok().filter(|line| line["ready"] == true)
    });
    site.gateways.remove(1).kill();
    finish(&mut script, "crowd.cjs");
}
