//! A delta leads from any payload to any other, is text where both are, and whatever is no delta is refused.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tidegate_wire::centrifuge::delta;

fuzz_target!(|input: (&[u8], &[u8], &[u8])| {
    let (source, target, other) = input;
    let mut made = Vec::new();
    delta::create(source, target, &mut made);
    assert_eq!(delta::apply(source, &made).as_deref(), Some(target));
    if std::str::from_utf8(target).is_ok() {
        assert!(std::str::from_utf8(&made).is_ok());
    }
    drop(delta::apply(source, other));
});
