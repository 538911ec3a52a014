//! What must be true of the objects of one rendering, whatever the values. Each rule gives a sentence for each breach.

use serde_json::{Map, Value};

use super::render::Object;

/// So begin the names of what values files of the matrix and of `k8s/` take as existing, and of what every namespace has.
const EXISTING: [&str; 3] = ["existing-", "tidegate-secrets", "default"];

/// A sentence for each breach.
type Rule = fn(&[Object]) -> Vec<String>;

/// Everything that is wrong.
pub(crate) fn findings(objects: &[Object]) -> Vec<String> {
    let rules: [Rule; 9] =
        [identity, security, pods, drain, selectors, services, scaling, rollout, references];
    rules.iter().flat_map(|rule| rule(objects)).collect()
}

/// Every object has a namespace and the labels of the release, and none is there twice.
fn identity(objects: &[Object]) -> Vec<String> {
    let mut found = Vec::new();
    for (index, object) in objects.iter().enumerate() {
        if objects[..index].iter().any(|other| other.id() == object.id()) {
            found.push(format!("{} is there twice", object.id()));
        }
        if object.text("/metadata/namespace").is_empty() {
            found.push(format!("{} has no namespace", object.id()));
        }
        for label in ["name", "instance", "component"] {
            if object.text(&format!("/metadata/labels/app.kubernetes.io~1{label}")).is_empty() {
                found.push(format!("{} has no label {label}", object.id()));
            }
        }
    }
    found
}

/// The level 'restricted' of the Pod Security Standards, a read-only root, and no token.
fn security(objects: &[Object]) -> Vec<String> {
    let mut found = Vec::new();
    for (object, pod) in with_pods(objects) {
        let mut expect = |holds: bool, what: &str| {
            if !holds {
                found.push(format!("{} {what}", object.id()));
            }
        };
        expect(pod["automountServiceAccountToken"] == false, "mounts a token");
        expect(pod["securityContext"]["runAsNonRoot"] == true, "may run as root");
        expect(
            pod["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault",
            "has no seccomp profile",
        );
        for host in ["hostNetwork", "hostPID", "hostIPC"] {
            expect(pod[host].is_null(), "shares a namespace with its host");
        }
        expect(list(&pod["volumes"]).iter().all(|volume| volume["hostPath"].is_null()), "mounts a host path");
        for container in list(&pod["containers"]) {
            let context = &container["securityContext"];
            expect(context["allowPrivilegeEscalation"] == false, "may gain privileges");
            expect(context["capabilities"]["drop"][0] == "ALL", "keeps capabilities");
            expect(context["capabilities"]["add"].is_null(), "adds capabilities");
            expect(context["readOnlyRootFilesystem"] == true, "may write to its root");
            // Those that the user adds beside the chart's are the user's.
            let is_ours = container["name"] == pod["containers"][0]["name"];
            let has_memory = |kind: &str| !is_ours || container["resources"][kind]["memory"].is_string();
            expect(has_memory("requests"), "requests no memory");
            expect(has_memory("limits"), "has no memory limit");
        }
    }
    found
}

/// Probes on ports that are not the public one, images with a version, mounts of volumes that are there.
fn pods(objects: &[Object]) -> Vec<String> {
    let mut found = Vec::new();
    for (object, pod) in with_pods(objects) {
        let volumes: Vec<&Value> = list(&pod["volumes"]).iter().map(|volume| &volume["name"]).collect();
        for container in list(&pod["containers"]) {
            let mut expect = |holds: bool, what: &str| {
                if !holds {
                    found.push(format!("{} {what}", object.id()));
                }
            };
            let image = container["image"].as_str().unwrap_or_default();
            let version = image.rsplit('/').next().unwrap_or_default().contains([':', '@']);
            expect(
                version && !image.ends_with(":latest") && !image.ends_with(':'),
                "has an image without version",
            );
            for mount in list(&container["volumeMounts"]) {
                expect(volumes.contains(&&mount["name"]), "mounts a volume that it does not have");
            }
            if object.kind() != "Pod" && container["name"] == pod["containers"][0]["name"] {
                for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
                    expect(container[probe].is_object(), "lacks a probe");
                    expect(container[probe]["httpGet"]["port"] != "http", "is probed on its public port");
                }
            }
        }
    }
    found
}

/// The time that a pod gets to end covers its drain and 10 s: settle, closing, close echoes.
fn drain(objects: &[Object]) -> Vec<String> {
    let mut found = Vec::new();
    for (object, component) in ["gateway", "router"].into_iter().filter_map(|name| workload(objects, name)) {
        let settings = config(objects, component);
        let duration = |key: &str| {
            let line = settings.split("[drain]").nth(1).unwrap_or_default().lines();
            let mut values = line.take_while(|line| !line.starts_with('['));
            values
                .find_map(|line| line.strip_prefix(&format!("{key} = ")))
                .and_then(|text| seconds(text.trim_matches('"')))
        };
        let parts = [duration("settle"), duration("period"), duration("close_wait")];
        let grace = object.at("/spec/template/spec/terminationGracePeriodSeconds").as_f64();
        match (grace, parts.iter().copied().sum::<Option<f64>>()) {
            (Some(grace), Some(parts)) if grace >= parts + 10.0 => {}
            (grace, parts) => {
                found.push(format!("{} has {grace:?} s for a drain of {parts:?} s and 10", object.id()))
            }
        }
    }
    found
}

/// `1m30s` → 90.
fn seconds(text: &str) -> Option<f64> {
    let mut sum = 0.0;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let (number, unit) = rest.split_at(digits);
        let end = unit.find(|c: char| c.is_ascii_digit()).unwrap_or(unit.len());
        let (unit, next) = unit.split_at(end);
        let scale = [("ms", 0.001), ("s", 1.0), ("m", 60.0), ("h", 3600.0), ("d", 86400.0)];
        sum += number.parse::<f64>().ok()? * scale.iter().find(|(name, _)| *name == unit)?.1;
        rest = next;
    }
    Some(sum)
}

/// What selects pods selects some, and a workload selects its own.
fn selectors(objects: &[Object]) -> Vec<String> {
    let templates: Vec<&Value> =
        objects.iter().map(|object| object.at("/spec/template/metadata/labels")).collect();
    let mut found = Vec::new();
    for object in objects {
        let pointer = match object.kind() {
            "StatefulSet" | "Deployment" | "PodDisruptionBudget" | "PodMonitor" => {
                "/spec/selector/matchLabels"
            }
            "Service" => "/spec/selector",
            "NetworkPolicy" => "/spec/podSelector/matchLabels",
            "ServiceMonitor" if !selects_service(object, objects) => {
                found.push(format!("{} selects no Service", object.id()));
                continue;
            }
            _ => continue,
        };
        let selector = object.at(pointer).as_object();
        let hits = templates.iter().filter(|labels| selector.is_some_and(|selector| holds(labels, selector)));
        if hits.count() != 1 {
            found.push(format!("{} does not select the pods of one workload", object.id()));
        }
        if object.kind() == "StatefulSet" || object.kind() == "Deployment" {
            let own = object.at("/spec/template/metadata/labels");
            if !selector.is_some_and(|selector| holds(own, selector)) {
                found.push(format!("{} does not select its own pods", object.id()));
            }
            for constraint in list(object.at("/spec/template/spec/topologySpreadConstraints")) {
                if constraint["labelSelector"]["matchLabels"].as_object() != selector {
                    found.push(format!("{} is spread by other labels than its own", object.id()));
                }
            }
        }
    }
    found
}

fn selects_service(monitor: &Object, objects: &[Object]) -> bool {
    let selector = monitor.at("/spec/selector/matchLabels").as_object();
    let mut services = objects.iter().filter(|object| object.kind() == "Service");
    services.any(|service| selector.is_some_and(|selector| holds(service.at("/metadata/labels"), selector)))
}

/// Ports have names that the pods have; the internal one is on headless Services only; no session affinity.
fn services(objects: &[Object]) -> Vec<String> {
    let mut found = Vec::new();
    for service in objects.iter().filter(|object| object.kind() == "Service") {
        let selector = service.at("/spec/selector").as_object().cloned().unwrap_or_default();
        let workload =
            objects.iter().find(|object| holds(object.at("/spec/template/metadata/labels"), &selector));
        let ports: Vec<&Value> = workload
            .iter()
            .flat_map(|object| list(object.at("/spec/template/spec/containers/0/ports")))
            .map(|port| &port["name"])
            .collect();
        let headless = service.at("/spec/clusterIP") == "None";
        for port in list(service.at("/spec/ports")) {
            if !ports.contains(&&port["targetPort"]) {
                found.push(format!("{} leads to a port that its pods do not have", service.id()));
            }
            if !headless && port["targetPort"] == "internal" {
                found.push(format!("{} publishes the internal port", service.id()));
            }
        }
        if !service.at("/spec/sessionAffinity").is_null() {
            found.push(format!("{} has session affinity", service.id()));
        }
    }
    found
}

/// A workload has a number of pods, or an autoscaler, which then finds it.
fn scaling(objects: &[Object]) -> Vec<String> {
    let scalers: Vec<&Object> = objects
        .iter()
        .filter(|object| matches!(object.kind(), "HorizontalPodAutoscaler" | "ScaledObject"))
        .collect();
    let target = |scaler: &Object| {
        format!("{} {}", scaler.text("/spec/scaleTargetRef/kind"), scaler.text("/spec/scaleTargetRef/name"))
    };
    let mut found = Vec::new();
    for scaler in &scalers {
        if !objects.iter().any(|object| object.id() == target(scaler)) {
            found.push(format!("{} scales what is not there", scaler.id()));
        }
    }
    for object in objects.iter().filter(|object| matches!(object.kind(), "StatefulSet" | "Deployment")) {
        let scaled = scalers.iter().filter(|scaler| target(scaler) == object.id()).count();
        let numbered = usize::from(object.at("/spec/replicas").is_number());
        if scaled + numbered != 1 {
            found.push(format!(
                "{} has {scaled} autoscalers, and a number of replicas {numbered} times",
                object.id()
            ));
        }
    }
    found
}

/// How gateways and routers are replaced, and that a new configuration replaces them.
fn rollout(objects: &[Object]) -> Vec<String> {
    let mut found = Vec::new();
    if let Some((gateway, _)) = workload(objects, "gateway") {
        let service = gateway.text("/spec/serviceName");
        let headless = objects.iter().any(|object| {
            object.kind() == "Service" && object.name() == service && object.at("/spec/clusterIP") == "None"
        });
        if gateway.kind() != "StatefulSet"
            || gateway.at("/spec/podManagementPolicy") != "Parallel"
            || !headless
        {
            found.push(format!("{} is no parallel StatefulSet with a headless Service", gateway.id()));
        }
    }
    if let Some((router, _)) = workload(objects, "router") {
        let update = router.at("/spec/strategy/rollingUpdate");
        if router.kind() != "Deployment" || update["maxSurge"] != "100%" || update["maxUnavailable"] != 0 {
            found.push(format!("{} does not surge whole", router.id()));
        }
    }
    for (object, _) in ["gateway", "router"].into_iter().filter_map(|name| workload(objects, name)) {
        let annotations = object.at("/spec/template/metadata/annotations");
        if annotations["checksum/config"].as_str().is_none_or(|sum| sum.len() != 64) {
            found.push(format!("{} is not replaced when its configuration changes", object.id()));
        }
    }
    found
}

/// ConfigMaps, Secrets, accounts and Services that are named are there, or said to exist.
fn references(objects: &[Object]) -> Vec<String> {
    let mut found = Vec::new();
    let is_there = |kind: &str, name: &str| {
        EXISTING.iter().any(|begin| name.starts_with(begin))
            || objects.iter().any(|object| object.kind() == kind && object.name() == name)
    };
    for object in objects {
        let mut expect = |kind: &str, name: &Value| {
            if let Some(name) = name.as_str().filter(|name| !is_there(kind, name)) {
                found.push(format!("{} names {kind} {name}, which is not there", object.id()));
            }
        };
        if let Some(pod) = object.pod() {
            expect("ServiceAccount", &pod["serviceAccountName"]);
            for volume in list(&pod["volumes"]) {
                expect("ConfigMap", &volume["configMap"]["name"]);
                expect("Secret", &volume["secret"]["secretName"]);
            }
            for variable in list(&pod["containers"][0]["env"]) {
                expect("Secret", &variable["valueFrom"]["secretKeyRef"]["name"]);
            }
        }
        for rule in list(object.at("/spec/rules")) {
            for path in list(&rule["http"]["paths"]) {
                expect("Service", &path["backend"]["service"]["name"]);
            }
            for backend in list(&rule["backendRefs"]) {
                expect("Service", &backend["name"]);
            }
        }
    }
    found
}

/// The configuration file of a component.
pub(crate) fn config<'a>(objects: &'a [Object], component: &str) -> &'a str {
    let file = format!("{component}.toml");
    let data =
        objects.iter().filter(|object| object.kind() == "ConfigMap").map(|object| &object.at("/data")[&file]);
    data.filter_map(Value::as_str).next().unwrap_or_default()
}

/// The StatefulSet or Deployment of a component.
pub(crate) fn workload<'a>(
    objects: &'a [Object],
    component: &'static str,
) -> Option<(&'a Object, &'static str)> {
    let label = "/spec/template/metadata/labels/app.kubernetes.io~1component";
    objects.iter().find(|object| object.text(label) == component).map(|object| (object, component))
}

fn with_pods(objects: &[Object]) -> impl Iterator<Item = (&Object, &Value)> {
    objects.iter().filter_map(|object| object.pod().map(|pod| (object, pod)))
}

/// The elements of a list; none of anything else.
pub(crate) fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn holds(labels: &Value, selector: &Map<String, Value>) -> bool {
    !selector.is_empty() && selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A gateway with its Service that break no rule.
    fn good() -> Vec<Object> {
        let labels = |component: &str| json!({"app.kubernetes.io/name": "t", "app.kubernetes.io/instance": "e", "app.kubernetes.io/component": component});
        let metadata = |name: &str| json!({"name": name, "namespace": "n", "labels": labels("gateway")});
        let probe = json!({"httpGet": {"path": "/livez", "port": "internal"}});
        let container = json!({
            "name": "gateway", "image": "r/t:1",
            "ports": [{"name": "http"}, {"name": "internal"}],
            "startupProbe": probe, "livenessProbe": probe, "readinessProbe": probe,
            "securityContext": {"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]}},
            "resources": {"requests": {"memory": "1Gi"}, "limits": {"memory": "1Gi"}},
            "volumeMounts": [{"name": "config"}],
        });
        let pod = json!({
            "automountServiceAccountToken": false, "terminationGracePeriodSeconds": 56,
            "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [container], "volumes": [{"name": "config", "configMap": {"name": "g"}}],
        });
        let template = json!({"metadata": {"labels": labels("gateway"), "annotations": {"checksum/config": "0".repeat(64)}}, "spec": pod});
        vec![
            Object(json!({"kind": "StatefulSet", "metadata": metadata("g"), "spec": {
                "replicas": 2, "serviceName": "h", "podManagementPolicy": "Parallel",
                "selector": {"matchLabels": labels("gateway")}, "template": template,
            }})),
            Object(json!({"kind": "Service", "metadata": metadata("h"), "spec": {
                "clusterIP": "None", "selector": labels("gateway"), "ports": [{"targetPort": "internal"}],
            }})),
            Object(json!({"kind": "ConfigMap", "metadata": metadata("g"), "data": {
                "gateway.toml": "a = 1\n[drain]\nsettle = \"10s\"\nperiod = \"30s500ms\"\nclose_wait = \"5s\"\n[log]\n",
            }})),
        ]
    }

    /// Sets one field of one object and expects exactly this finding.
    #[track_caller]
    fn check(index: usize, pointer: &str, value: Value, expect: &str) {
        let mut objects = good();
        let (parent, key) = pointer.rsplit_once('/').expect("a pointer");
        let parent = objects[index].0.pointer_mut(parent).expect("a parent");
        match key.parse::<usize>() {
            Ok(position) => parent[position] = value,
            Err(_) => parent[&key.replace("~1", "/")] = value,
        }
        let found = findings(&objects);
        assert!(found.iter().any(|finding| finding.contains(expect)), "{expect:?} is not in {found:?}");
    }

    #[test]
    fn what_is_good_passes() {
        assert_eq!(findings(&good()), Vec::<String>::new());
    }

    #[test]
    fn every_rule_can_fail() {
        let pod = "/spec/template/spec";
        let container = "/spec/template/spec/containers/0";
        check(0, "/metadata/namespace", Value::Null, "has no namespace");
        check(1, "/metadata/labels/app.kubernetes.io~1instance", Value::Null, "has no label instance");
        check(0, &format!("{pod}/automountServiceAccountToken"), json!(true), "mounts a token");
        check(0, &format!("{pod}/securityContext/runAsNonRoot"), json!(false), "run as root");
        check(
            0,
            &format!("{container}/securityContext/readOnlyRootFilesystem"),
            json!(false),
            "write to its root",
        );
        check(0, &format!("{container}/securityContext/capabilities/drop"), json!([]), "keeps capabilities");
        check(0, &format!("{container}/image"), json!("r:5000/t"), "without version");
        check(0, &format!("{container}/volumeMounts"), json!([{"name": "z"}]), "mounts a volume");
        check(
            0,
            &format!("{container}/livenessProbe"),
            json!({"httpGet": {"port": "http"}}),
            "its public port",
        );
        check(0, &format!("{pod}/terminationGracePeriodSeconds"), json!(55), "for a drain of");
        check(0, "/spec/selector/matchLabels/app.kubernetes.io~1name", json!("z"), "its own pods");
        check(1, "/spec/selector/app.kubernetes.io~1name", json!("z"), "the pods of one workload");
        check(1, "/spec/clusterIP", Value::Null, "publishes the internal port");
        check(1, "/spec/sessionAffinity", json!("ClientIP"), "session affinity");
        check(1, "/spec/ports/0", json!({"targetPort": "z"}), "do not have");
        check(0, "/spec/replicas", Value::Null, "0 autoscalers");
        check(0, "/spec/podManagementPolicy", json!("OrderedReady"), "no parallel StatefulSet");
        check(0, "/spec/template/metadata/annotations", json!({}), "is not replaced");
        check(2, "/metadata/name", json!("z"), "names ConfigMap g");
    }

    #[test]
    fn durations() {
        assert_eq!([seconds("1m30s"), seconds("500ms"), seconds("5")], [Some(90.0), Some(0.5), None]);
    }
}
