//! `cargo xtask million`, smaller.

use std::time::Duration;

use tidegate_testkit::product_binary;
use tidegate_tests::million::{Options, run};

#[test]
fn a_few_thousand_behind_one_port_are_all_reached_and_none_twice_and_stay_over_an_upgrade() {
    let options = Options {
        connections: 3_000,
        hold: Duration::ZERO,
        tidegate: product_binary(),
        program: env!("CARGO_BIN_EXE_tidegate-million").into(),
    };
    let report = run(&options).unwrap();
    println!("{report}");
    assert!(report.contains("3000, 3000 and 3000 of 3000; 0 doubled, 0 closed, 0 refused"), "{report}");
}
