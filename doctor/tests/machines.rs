//! Machines as trees of files: what is read from them, and what it comes to.

#![allow(clippy::unwrap_used)]

use std::fs;

use tempfile::TempDir;
use tidegate_doctor::{
    Assessment, Facts, Machine, Node, Place, Report, Resource, Role, Unreadable, WarningKind, Why,
};

const GATEWAY: Node = Node { role: Role::Gateway, tls: false };

/// A tree below a temporary directory.
struct Tree(TempDir);

impl Tree {
    /// 16 GiB, 8 cores, kernel defaults, no limits of a control group, nothing tracked.
    fn laptop() -> Self {
        Self(tempfile::tempdir().unwrap())
            .limits("1024", "1024")
            .with("proc/self/status", "Name:\tcat\nCpus_allowed:\tff\nCpus_allowed_list:\t0-7\n")
            .with("proc/self/cgroup", "0::/user.slice/session-2.scope\n")
            .with("sys/fs/cgroup/cgroup.controllers", "cpu memory pids\n")
            .with("sys/fs/cgroup/user.slice/session-2.scope/cgroup.controllers", "memory pids\n")
            .with("sys/fs/cgroup/user.slice/session-2.scope/memory.max", "max\n")
            .with("sys/fs/cgroup/user.slice/memory.max", "max\n")
            .with(
                "proc/meminfo",
                "MemTotal:       16384000 kB\nMemFree:         1000 kB\nMemAvailable:   12288000 kB\n",
            )
            .with("proc/sys/fs/nr_open", "1048576\n")
            .with("proc/sys/fs/file-nr", "9728\t0\t9223372036854775807\n")
            .with("proc/sys/net/core/somaxconn", "4096\n")
            .with("proc/sys/net/ipv4/tcp_mem", "190000\t253333\t380000\n")
            .with("proc/sys/net/ipv4/tcp_rmem", "4096\t131072\t6291456\n")
            .with("proc/sys/net/ipv4/tcp_wmem", "4096\t16384\t4194304\n")
            .with("proc/sys/net/ipv4/ip_local_port_range", "32768\t60999\n")
            .with("proc/sys/net/ipv4/tcp_max_syn_backlog", "1024\n")
            .with("proc/sys/net/ipv4/tcp_syncookies", "1\n")
    }

    /// Docker, control groups of version 2 with a namespace, 512 MiB and half a core.
    fn container() -> Self {
        Self::laptop()
            .limits("1048576", "1048576")
            .with(".dockerenv", "")
            .with("proc/self/cgroup", "0::/\n")
            .with("sys/fs/cgroup/memory.max", "536870912\n")
            .with("sys/fs/cgroup/cpu.max", "50000 100000\n")
    }

    fn limits(self, soft: &str, hard: &str) -> Self {
        let head = "Limit                     Soft Limit           Hard Limit           Units     \n";
        self.with(
            "proc/self/limits",
            &format!("{head}Max open files            {soft}      {hard}     files\n"),
        )
    }

    fn with(self, path: &str, text: &str) -> Self {
        let path = self.0.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        self
    }

    fn without(self, path: &str) -> Self {
        let path = self.0.path().join(path);
        if path.is_dir() {
            fs::remove_dir_all(path).unwrap()
        } else {
            fs::remove_file(path).unwrap()
        }
        self
    }

    fn facts(&self) -> Facts {
        Machine::at(self.0.path()).facts()
    }

    fn assess(&self, node: Node, wanted: Option<u64>) -> Assessment {
        Assessment::of(&self.facts(), node, wanted)
    }
}

/// What the first limit is, how many connections it allows, and the line that raises it.
#[track_caller]
fn check(tree: &Tree, wanted: Option<u64>, first: Resource, connections: u64, line: &str) -> Assessment {
    let assessment = tree.assess(GATEWAY, wanted);
    assert_eq!((assessment.first, assessment.connections), (Some(first), Some(connections)), "{assessment}");
    let lines: Vec<&str> =
        assessment.limits.iter().flat_map(|limit| &limit.raise).map(|remedy| remedy.line.as_str()).collect();
    assert!(lines.contains(&line), "{line:?} is in {lines:?}");
    assessment
}

#[track_caller]
fn connections(assessment: &Assessment, resource: Resource) -> u64 {
    assessment.limits.iter().find(|limit| limit.resource == resource).unwrap().connections
}

#[test]
fn a_laptop_with_1024_descriptors() {
    // 1,024 less 200; the next limit is the pages of TCP: 253,333 and 200 more, in steps of 1,024.
    let assessment = check(&Tree::laptop(), None, Resource::Descriptors, 824, "LimitNOFILE=253952");
    // 12,000 MiB less 32 MiB, three quarters of it, 4,326 bytes each.
    assert_eq!(connections(&assessment, Resource::Memory), 12_549_357_568 / 100 * 75 / 4326);
    // 8 cores, half of them, 433 ns a second each.
    assert_eq!(connections(&assessment, Resource::Cpu), 8_000_000_000 / 2 / 433);
    assert!(assessment.warnings.is_empty(), "{assessment}");
    assert!(assessment.unreadable.is_empty(), "{assessment}");
}

#[test]
fn a_system_that_is_out_of_files() {
    let tree = Tree::laptop().limits("1048576", "1048576").with("proc/sys/fs/file-nr", "9728\t0\t65536\n");
    check(&tree, Some(100_000), Resource::SystemFiles, 55_808, "fs.file-max = 131072");
}

#[test]
fn a_soft_limit_is_raised_by_the_program_itself() {
    let tree = Tree::laptop().limits("1024", "524288");
    check(&tree, None, Resource::TcpMemory, 253_333, "net.ipv4.tcp_mem = 393216 524288 786432");
}

#[test]
fn no_limit_of_descriptors_is_the_kernels_ceiling() {
    let assessment = Tree::laptop().limits("unlimited", "unlimited").assess(GATEWAY, None);
    assert_eq!(connections(&assessment, Resource::Descriptors), 1_048_576 - 200);
}

#[test]
fn a_wish_beyond_the_kernels_ceiling_raises_that_too() {
    let wanted = Some(2_000_000);
    let assessment = check(&Tree::laptop(), wanted, Resource::Descriptors, 824, "fs.nr_open = 2000896");
    assert_eq!(assessment.met, Some(false));
    let lines: Vec<_> = assessment.limits[0].raise.iter().map(|remedy| remedy.line.as_str()).collect();
    assert_eq!(lines, ["fs.nr_open = 2000896", "LimitNOFILE=2000896", "ulimit -n 2000896"]);
    // Every limit below the wish has a remedy, and no other.
    for limit in &assessment.limits {
        assert_eq!(limit.raise.is_empty(), limit.connections >= 2_000_000, "{limit:?}");
    }
}

#[test]
fn a_container_of_512_mib() {
    // (536,870,912 − 33,554,432) × 75 % / 4,326; for 100,000: 100,000 × 4,326 / 75 % + 32 MiB, in steps of 64 MiB.
    let assessment = check(&Tree::container(), Some(100_000), Resource::Memory, 87_260, "--memory=640m");
    assert_eq!(assessment.met, Some(false));
    assert_eq!(connections(&assessment, Resource::Cpu), 577_367);
    let warning = assessment.warnings.iter().find(|warning| warning.kind == WarningKind::ConnectionsLimit);
    assert_eq!(warning.unwrap().raise.as_ref().unwrap().line, "TIDEGATE__LIMITS__CONNECTIONS=87260");
    assert_eq!(Tree::container().assess(GATEWAY, Some(80_000)).met, Some(true));
}

/// Disks of virtual machines are made from images of containers, with what a runtime left in them.
#[test]
fn a_machine_with_a_containers_file_on_its_disk_is_a_machine() {
    let place = |tree: &Tree| tree.facts().place;
    let machine = Tree::container()
        .with("proc/2/comm", "kthreadd\n")
        .with("proc/self/mounts", "/dev/vda / ext4 rw 0 0\n");
    assert_eq!(place(&machine), Place::Machine);
    let with_the_machines_processes = machine.with("proc/self/mounts", "overlay / overlay rw 0 0\n");
    assert_eq!(place(&with_the_machines_processes), Place::Container);
}

#[test]
fn what_a_remedy_gives_is_enough() {
    let raised = Tree::container().with("sys/fs/cgroup/memory.max", &format!("{}\n", 640 << 20));
    assert_eq!(raised.assess(GATEWAY, Some(100_000)).met, Some(true));
}

#[test]
fn tls_and_routers_take_more_memory() {
    let tree = Tree::container();
    let usable = (536_870_912u64 - (32 << 20)) / 100 * 75;
    for (node, bytes) in [
        (Node { role: Role::Gateway, tls: true }, 230 + 4096 + 3700),
        (Node { role: Role::Router { gateways: 3 }, tls: false }, 230 + 2 * 4096),
    ] {
        assert_eq!(connections(&tree.assess(node, None), Resource::Memory), usable / bytes, "{node:?}");
    }
}

#[test]
fn a_router_needs_two_descriptors_and_a_port() {
    let node = Node { role: Role::Router { gateways: 3 }, tls: false };
    let assessment = Tree::laptop().assess(node, Some(200_000));
    assert_eq!(connections(&assessment, Resource::Descriptors), 412);
    assert_eq!(connections(&assessment, Resource::Ports), 3 * 28_232);
    let ports = assessment.limits.iter().find(|limit| limit.resource == Resource::Ports).unwrap();
    let lines: Vec<_> = ports.raise.iter().map(|remedy| remedy.line.as_str()).collect();
    assert_eq!(lines, ["net.ipv4.ip_local_port_range = 1024 65535", "4 gateways behind it, or more routers"]);
}

#[test]
fn a_table_of_tracked_connections_that_is_nearly_full() {
    let tree = Tree::laptop()
        .limits("1048576", "1048576")
        .with("proc/sys/net/netfilter/nf_conntrack_max", "65536\n")
        .with("proc/sys/net/netfilter/nf_conntrack_count", "60000\n");
    check(&tree, Some(50_000), Resource::Conntrack, 5_536, "net.netfilter.nf_conntrack_max = 131072");
    // 0 is no bound.
    let unbounded = tree.with("proc/sys/net/netfilter/nf_conntrack_max", "0\n");
    assert_eq!(unbounded.assess(GATEWAY, None).first, Some(Resource::TcpMemory));
}

#[test]
fn a_pod_of_version_1() {
    let group = "kubepods/burstable/pod7/abc";
    let tree = Tree::laptop()
        .limits("1048576", "1048576")
        .with("proc/self/cgroup", &format!("5:memory:/{group}\n3:cpu,cpuacct:/{group}\n0::/\n"))
        .with("sys/fs/cgroup/memory/kubepods/memory.limit_in_bytes", "1073741824\n")
        .with(&format!("sys/fs/cgroup/memory/{group}/memory.limit_in_bytes"), "9223372036854771712\n")
        .with("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n")
        .with("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "-1\n")
        .with("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n");
    let facts = tree.facts();
    assert_eq!(facts.place, Place::Kubernetes);
    assert_eq!(facts.memory_limit, Ok(Some(1 << 30)), "a parent's limit holds");
    assert_eq!(facts.cpu_quota_millis, Ok(None));
    check(&tree, Some(200_000), Resource::Memory, 180_337, "resources: {limits: {memory: 1152Mi}}");
    let limited = tree.with("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "20000\n");
    assert_eq!(limited.facts().cpu_quota_millis, Ok(Some(200)));
}

#[test]
fn what_proc_sys_hides_is_named_and_the_rest_still_answers() {
    let tree = Tree::container().without("proc/sys");
    let assessment = tree.assess(GATEWAY, Some(100_000));
    assert_eq!((assessment.first, assessment.met), (Some(Resource::Memory), Some(false)));
    let paths: Vec<&str> = assessment.unreadable.iter().map(|unreadable| unreadable.path.as_str()).collect();
    for path in
        ["/proc/sys/fs/nr_open", "/proc/sys/net/ipv4/tcp_mem", "/proc/sys/net/netfilter/nf_conntrack_max"]
    {
        assert!(paths.contains(&path), "{path} is in {paths:?}");
    }
    assert!(assessment.unreadable.iter().all(|unreadable| unreadable.why == Why::Missing));
    let text = assessment.to_string();
    assert!(text.contains("/proc/sys/net/core/somaxconn is not there"), "{text}");
    assert!(text.contains("run `tidegate doctor` there too"), "{text}");
}

#[test]
fn nothing_at_all_is_no_number_and_no_promise() {
    let tree = Tree(tempfile::tempdir().unwrap());
    let assessment = tree.assess(GATEWAY, Some(1));
    assert_eq!((assessment.connections, assessment.met), (None, Some(false)));
    assert_eq!(assessment.unreadable.len(), 15);
    let report = Report { machine: assessment, deployment: None };
    assert!(!report.is_good());
    assert!(report.to_string().starts_with("no limit of this machine could be read"), "{report}");
}

#[test]
fn a_file_with_another_form_is_said_to_have_one() {
    let tree = Tree::laptop()
        .with("proc/sys/net/ipv4/tcp_mem", "many\n")
        .with("proc/sys/net/ipv4/ip_local_port_range", "60999 32768\n");
    let unreadable: Vec<_> = tree.facts().unreadable();
    let of = |path: &str| Unreadable { path: path.to_owned(), why: Why::Malformed };
    assert_eq!(unreadable, [of("/proc/sys/net/ipv4/tcp_mem"), of("/proc/sys/net/ipv4/ip_local_port_range")]);
}

#[test]
fn warnings_name_what_spoils_the_day() {
    let tree = Tree::container()
        .with("proc/sys/net/core/somaxconn", "128\n")
        .with("proc/sys/net/ipv4/tcp_syncookies", "0\n")
        .with("proc/sys/net/ipv4/tcp_rmem", "4096\t131072\t33554432\n")
        .with("proc/sys/net/ipv4/tcp_wmem", "4096\t16384\t16777216\n");
    let assessment = tree.assess(GATEWAY, None);
    let found: Vec<_> = assessment
        .warnings
        .iter()
        .map(|warning| (warning.kind, warning.raise.as_ref().unwrap().line.as_str()))
        .collect();
    assert_eq!(
        found,
        [
            (WarningKind::AcceptQueue, "--sysctl net.core.somaxconn=\"4096\""),
            (WarningKind::SynFlood, "--sysctl net.ipv4.tcp_syncookies=\"1\""),
            (WarningKind::ReceiveBuffers, "--sysctl net.ipv4.tcp_rmem=\"4096 131072 6291456\""),
            (WarningKind::SendBuffers, "--sysctl net.ipv4.tcp_wmem=\"4096 16384 4194304\""),
            (WarningKind::ConnectionsLimit, "TIDEGATE__LIMITS__CONNECTIONS=87260"),
            (WarningKind::ProxyPorts, "net.ipv4.ip_local_port_range = 1024 65535"),
        ]
    );
}

#[test]
fn a_pod_is_told_which_settings_it_may_have() {
    let tree = Tree::container()
        .with("etc/hosts", "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n")
        .with("proc/sys/net/core/somaxconn", "128\n")
        .with("proc/sys/net/ipv4/tcp_syncookies", "0\n");
    let remedies: Vec<_> =
        tree.assess(GATEWAY, None).warnings.into_iter().filter_map(|warning| warning.raise).collect();
    assert!(remedies[0].at.contains("--allowed-unsafe-sysctls"), "{remedies:?}");
    assert_eq!(remedies[0].line, "{name: net.core.somaxconn, value: \"4096\"}");
    assert!(!remedies[1].at.contains("unsafe"), "{remedies:?}");
}

/// The machine that the test runs on, whatever it is, has descriptors.
#[test]
fn this_machine_is_read() {
    let assessment = Assessment::of(&Machine::this().facts(), GATEWAY, None);
    assert!(assessment.limits.iter().any(|limit| limit.resource == Resource::Descriptors), "{assessment}");
}

/// Programs read it: members are added, and none is renamed or taken away.
#[test]
fn json() {
    let tree = Tree::container().with("proc/sys/net/core/somaxconn", "128\n").without("proc/sys/fs/nr_open");
    let report = Report { machine: tree.assess(GATEWAY, Some(100_000)), deployment: None };
    let json = serde_json::to_string_pretty(&report).unwrap() + "\n";
    check_golden("doctor.json", &json, include_str!("golden/doctor.json"));
}

/// People read it.
#[test]
fn text() {
    let tree = Tree::laptop().without("proc/sys/net/ipv4/tcp_syncookies");
    let report = Report { machine: tree.assess(GATEWAY, Some(50_000)), deployment: None };
    check_golden("doctor.txt", &report.to_string(), include_str!("golden/doctor.txt"));
}

/// `BLESS=1 cargo test -p tidegate-doctor` writes the files anew.
#[track_caller]
fn check_golden(name: &str, is: &str, expect: &str) {
    if std::env::var_os("BLESS").is_some() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/");
        fs::write(format!("{path}{name}"), is).unwrap();
    } else {
        assert_eq!(is, expect, "{name}");
    }
}
