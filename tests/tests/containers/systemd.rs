//! Units of a real systemd: a process that is replaced stays the unit's, with its clients.
//!
//! It is a manager of a user's units, which needs no machine of its own: cgroups are a tree of its own, and so is `/run`,
//! where it looks whether systemd has started the machine.

use std::{
    fs,
    net::{SocketAddr, TcpStream},
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, Command, Output, Stdio},
};

use tempfile::TempDir;
use tidegate_testkit::{
    DEADLINE, Gateway, Rest, WsClient, end, eventually, net::free_address, pid_runs, product_binary,
};

/// Ends, with all that it has started, when its standard input does.
const RUN: &str = r#"
set -e
mount --make-rprivate /
mount -t tmpfs none /run && mkdir -p /run/systemd/system
mkdir cgroups && mount -t cgroup2 none cgroups
own=cgroups/tidegate-$$
mkdir $own
sh -c 'echo 0 >$0/cgroup.procs && exec unshare --cgroup --mount sh -c "$1"' $own '
    mount -t tmpfs none /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup &&
    exec /lib/systemd/systemd --user --unit=units.target' &
read -r _ || true
echo 1 >$own/cgroup.kill
wait
until find $own -depth -type d -exec rmdir {} + 2>/dev/null; do sleep 0.1; done
umount cgroups
"#;

/// A systemd with one unit, `tidegate.service`.
struct Systemd {
    shell: Child,
    directory: TempDir,
}

impl Systemd {
    /// The unit runs this program; `service` is the rest of its section.
    #[track_caller]
    fn start(service: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        fs::create_dir(path.join("units")).unwrap();
        let unit = format!(
            "[Unit]\nDefaultDependencies=no\n[Service]\n{service}\nStandardOutput=append:{0}\nStandardError=append:{0}\n",
            path.join("log").display()
        );
        fs::write(path.join("units/tidegate.service"), unit).unwrap();
        fs::write(path.join("units/units.target"), "[Unit]\nDefaultDependencies=no\n").unwrap();
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", RUN]).current_dir(path);
        command.env("XDG_RUNTIME_DIR", path).env("HOME", path);
        command.env("SYSTEMD_UNIT_PATH", path.join("units")).env_remove("DBUS_SESSION_BUS_ADDRESS");
        let output = fs::File::create(path.join("systemd.log")).unwrap();
        command.stdin(Stdio::piped()).stdout(output.try_clone().unwrap()).stderr(output);
        // Whatever ends the test by its group of processes, the shell sees that its input ends.
        let shell = command.process_group(0).spawn().unwrap();
        let systemd = Self { shell, directory };
        eventually("systemd runs", DEADLINE, || systemd.try_systemctl(&["list-units"]).status.success());
        systemd
    }

    fn try_systemctl(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new("systemctl");
        command.arg("--user").args(arguments).env("XDG_RUNTIME_DIR", self.directory.path());
        command.env_remove("DBUS_SESSION_BUS_ADDRESS").output().unwrap()
    }

    /// `systemctl VERB tidegate.service`, which must succeed.
    #[track_caller]
    fn systemctl(&self, verb: &str) {
        let output = self.try_systemctl(&[verb, "tidegate.service"]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{verb}: {said}\n{}", self.log());
    }

    fn show(&self, property: &str) -> String {
        let output = self.try_systemctl(&["show", "--value", "--property", property, "tidegate.service"]);
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    fn main_pid(&self) -> u32 {
        self.show("MainPID").parse().unwrap()
    }

    fn log(&self) -> String {
        let read = |name: &str| fs::read_to_string(self.directory.path().join(name)).unwrap_or_default();
        read("systemd.log") + &read("log")
    }

    /// Another process serves in place of the unit's, whose end is not the unit's.
    #[track_caller]
    fn reload(&self) {
        let before = self.main_pid();
        self.systemctl("reload");
        assert_ne!(self.main_pid(), before);
        eventually("the process before has ended", DEADLINE, || !pid_runs(before));
        eventually("the unit is active", DEADLINE, || self.show("SubState") == "running");
    }

    /// The unit is what it was, with its process.
    #[track_caller]
    fn reload_fails(&self, client: &mut WsClient, serving: &Rest) {
        let before = self.main_pid();
        assert!(!self.try_systemctl(&["reload", "tidegate.service"]).status.success());
        assert_eq!((self.main_pid(), self.show("SubState").as_str()), (before, "running"));
        goes_on(client, serving, "the same process");
    }
}

impl Drop for Systemd {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
        drop(self.shell.stdin.take());
        // It ends by itself then.
        drop(self.shell.wait());
    }
}

#[track_caller]
fn goes_on(client: &mut WsClient, publishing: &Rest, text: &str) {
    publishing.publish("news", text).unwrap();
    assert_eq!(client.expect_text(), text);
}

/// What the page tells operators to have in their unit.
fn service(program: &Path, arguments: &str, internal: SocketAddr) -> String {
    let (program, asking) = (program.display(), product_binary());
    format!(
        "Type=notify\nEnvironment=TIDEGATE__DRAIN__SETTLE=200ms TIDEGATE__DRAIN__PERIOD=1s\nExecStart={program} {arguments} --internal {internal}\n\
         ExecReload={} upgrade http://{internal}\nExecStop=-/bin/kill -TERM $MAINPID\n\
         ExecStop=-/usr/bin/tail --pid=${{MAINPID}} -f /dev/null\nRestart=on-failure\n",
        asking.display()
    )
}

fn gateway(listen: SocketAddr) -> String {
    format!("gateway --dev --listen {listen}")
}

#[test]
fn a_gateway_of_a_unit_is_replaced_and_watched() {
    let (listen, internal) = (free_address(), free_address());
    let systemd = Systemd::start(&service(&product_binary(), &gateway(listen), internal));
    systemd.systemctl("start");
    let rest = Rest::new(listen).with_key("dev-key");
    // Started means that it serves.
    let mut client = WsClient::connect(listen, "/ws?channel=news");
    for round in ["first", "second"] {
        systemd.reload();
        goes_on(&mut client, &rest, round);
    }
    // systemd watches the one that serves, though it has not started it.
    end(systemd.main_pid());
    eventually("it is started again", DEADLINE, || {
        systemd.show("NRestarts") == "1" && systemd.show("SubState") == "running"
    });
    let mut client = WsClient::connect(listen, "/ws?channel=news");
    systemd.reload();
    goes_on(&mut client, &rest, "after a crash");
    systemd.systemctl("stop");
    client.expect_close(1012);
    assert_eq!(
        (systemd.show("ActiveState").as_str(), systemd.show("Result").as_str()),
        ("inactive", "success")
    );
}

#[test]
fn a_router_of_a_unit_is_replaced() {
    let node = Gateway::start();
    let (listen, internal) = (free_address(), free_address());
    let arguments = format!("router --listen {listen} --members static:{}", node.public());
    let systemd = Systemd::start(&service(&product_binary(), &arguments, internal));
    systemd.systemctl("start");
    eventually("it knows the gateway", DEADLINE, || Rest::new(internal).get("/readyz").status == 200);
    let mut client = WsClient::connect(listen, "/ws?channel=news");
    for round in ["first", "second"] {
        systemd.reload();
        goes_on(&mut client, &node.rest(), round);
    }
    systemd.systemctl("stop");
    assert_eq!(systemd.show("Result"), "success");
}

#[test]
fn a_program_that_does_not_serve_and_a_unit_that_is_not_told_change_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("tidegate");
    fs::copy(product_binary(), &program).unwrap();
    let (listen, internal) = (free_address(), free_address());
    let systemd = Systemd::start(&service(&program, &gateway(listen), internal));
    systemd.systemctl("start");
    let mut client = WsClient::connect(listen, "/ws?channel=news");
    let rest = Rest::new(listen).with_key("dev-key");
    fs::rename(&program, directory.path().join("running")).unwrap();
    fs::write(&program, "no program").unwrap();
    systemd.reload_fails(&mut client, &rest);
    drop(systemd);
    let (listen, internal) = (free_address(), free_address());
    let simple = service(&product_binary(), &gateway(listen), internal).replace("notify", "exec");
    let systemd = Systemd::start(&simple);
    systemd.systemctl("start");
    eventually("it serves", DEADLINE, || TcpStream::connect(listen).is_ok());
    let mut client = WsClient::connect(listen, "/ws?channel=news");
    systemd.reload_fails(&mut client, &Rest::new(listen).with_key("dev-key"));
    assert!(systemd.log().contains("Type=notify"), "{}", systemd.log());
}
