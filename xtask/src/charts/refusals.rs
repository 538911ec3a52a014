//! Values that must be refused, and the words that say why.

use std::path::Path;

use anyhow::{Result, bail};

use super::render::{Given, Helm, NAMESPACE, RELEASE};

/// A change of good values, and words of the sentence that refuses it.
struct Refusal(&'static [&'static str], &'static str);

/// Refused by the schema; the words are those on which Helm 3 and 4 agree.
const SCHEMA: &[Refusal] = &[
    Refusal(&["gateway.replica=3"], "replica"),
    Refusal(&["gatway.replicas=3"], "gatway"),
    Refusal(&["gateway.replicas=-1"], "replicas"),
    Refusal(&["gateway.replicas=three"], "replicas"),
    Refusal(&["gateway.config.limits.conections=7"], "conections"),
    Refusal(&["gateway.config.limits.connections=-7"], "connections"),
    Refusal(&["gateway.config.drain.settle=10"], "settle"),
    Refusal(&["gateway.config.drain.settle=null"], "settle"),
    Refusal(&["gateway.config.listen=0.0.0.0:1"], "listen"),
    Refusal(&["gateway.config.auth.jwt[0].secret=in-a-config-map"], "secret"),
    Refusal(&["gateway.config.apps.shop.secret=in-a-config-map"], "secret"),
    Refusal(&["gateway.config.namespaces.news.histroy_size=1"], "histroy_size"),
    Refusal(&["router.config.key=zebra"], "key"),
    Refusal(&["router.config.heartbeat.interval=1s"], "heartbeat"),
    Refusal(&["router.service.type=Loadbalancer"], "type"),
    Refusal(&["router.service.port=70000"], "port"),
    Refusal(&["gateway.resources.request.cpu=1"], "request"),
    Refusal(&["gateway.probes.liveness.path=/"], "path"),
    Refusal(&["gateway.topologySpreadConstraints[0].maxskew=1"], "maxskew"),
    Refusal(&["networkPolicy.egress.rule=x"], "rule"),
    Refusal(&["gateway.securityContext.readOnlyRootFileSystem=true"], "readOnlyRootFileSystem"),
    Refusal(&["router.extraEnv[0].vaule=x"], "vaule"),
];

/// Refused by a guard: each word by word in its sentence.
const GUARDS: &[Refusal] = &[
    Refusal(&["credentials.apiKey=", "credentials.jwtSecret="], "nobody could publish"),
    Refusal(&["credentials.existingSecret=a"], "give the Secret, or the values for a trial"),
    Refusal(&["credentials.apiKey=short"], "shorter than 16 characters"),
    Refusal(&["credentials.jwtSecret=short"], "shorter than 32 bytes"),
    Refusal(&["credentials.appsEntry=apps.toml"], "credentials.existingSecret, which is empty"),
    Refusal(&["credentials.apiKeyEntry="], "the key would not be used"),
    Refusal(&["redis.bundled.enabled=false"], "More than one gateway needs Redis"),
    Refusal(&["redis.url=redis://a"], "use the bundled Redis, or another one"),
    Refusal(&["redis.bundled.enabled=false", "redis.urlEntry=url"], "redis.existingSecret, which is empty"),
    Refusal(
        &["redis.bundled.enabled=false", "redis.existingSecret=a"],
        "none of redis.urlEntry, redis.passwordEntry and redis.sentinelPasswordEntry",
    ),
    Refusal(
        &[
            "redis.bundled.enabled=false",
            "redis.existingSecret=a",
            "redis.sentinelPasswordEntry=p",
            "redis.url=redis://a",
        ],
        "for a URL of Sentinels",
    ),
    Refusal(&["gateway.extraVolumes[0].name=authorities"], "a volume of the chart"),
    Refusal(
        &["redis.bundled.enabled=false", "redis.existingSecret=a", "redis.passwordEntry=p"],
        "redis.url, which is empty",
    ),
    Refusal(
        &["redis.bundled.enabled=false", "redis.url=redis://a", "redis.existingSecret=a", "redis.urlEntry=u"],
        "redis.url and redis.urlEntry are both set",
    ),
    Refusal(&["redis.bundled.enabled=false", "redis.url=redis://user:password@a"], "readable in a ConfigMap"),
    Refusal(&["gateway.terminationGracePeriodSeconds=54"], "the drain (settle, period and close_wait"),
    Refusal(&["gateway.config.drain.period=1m", "gateway.terminationGracePeriodSeconds=60"], "takes 85"),
    Refusal(&["router.terminationGracePeriodSeconds=30"], "router.terminationGracePeriodSeconds is 30"),
    Refusal(&["gateway.autoscaling.hpa.enabled=true", "gateway.autoscaling.keda.enabled=true"], "enable one"),
    Refusal(
        &["router.autoscaling.hpa.enabled=true", "router.autoscaling.minReplicas=9"],
        "least is above the most",
    ),
    Refusal(
        &[
            "gateway.autoscaling.hpa.enabled=true",
            "gateway.autoscaling.cpuPercent=0",
            "gateway.autoscaling.connections=0",
        ],
        "nothing to scale by",
    ),
    Refusal(
        &["gateway.autoscaling.hpa.enabled=true", "gateway.resources.requests.cpu=null"],
        "which is not set",
    ),
    Refusal(&["gateway.autoscaling.keda.enabled=true"], "needs prometheusAddress"),
    Refusal(
        &["router.members=registry", "redis.bundled.enabled=false", "gateway.replicas=1"],
        "there is no Redis",
    ),
    Refusal(&["router.members=gateways"], "use registry, dns"),
    Refusal(
        &["router.members=static:a:1", "gateway.autoscaling.hpa.enabled=true"],
        "gateway.autoscaling changes the number",
    ),
    Refusal(&["router.config.redis.prefix=other"], "another deployment"),
    Refusal(&["router.service.loadBalancerClass=x"], "for the type LoadBalancer"),
    Refusal(&["router.service.externalTrafficPolicy=Local"], "the type is ClusterIP"),
    Refusal(&["gateway.tls.existingSecret=a"], "end TLS at the router"),
    Refusal(&["gateway.config.proxy_protocol=true"], "set both or neither"),
    Refusal(&["router.config.upstream.proxy_protocol=true"], "set both or neither"),
    Refusal(&["ingress.enabled=true"], "name at least one host"),
    Refusal(&["httpRoute.enabled=true"], "name the Gateway"),
    Refusal(&["fullnameOverride=Abc_D"], "small letters, digits"),
    Refusal(&["gateway.podLabels.app\\.kubernetes\\.io/name=x"], "selectors read"),
    Refusal(&["commonLabels.app\\.kubernetes\\.io/component=x"], "selectors read"),
    Refusal(&["gateway.extraEnv[0].name=A", "gateway.extraEnv[0].value=7"], "put it in quotes"),
    Refusal(&["router.extraVolumes[0].name=config"], "a volume of the chart"),
    Refusal(&["router.extraContainers[0].name=router"], "the chart's container"),
    Refusal(&["router.service.nodePort=30080"], "the type is ClusterIP"),
    Refusal(&["monitor.enabled=true"], "networkPolicy.internalFrom"),
    Refusal(
        &["credentials.apiKey=", "credentials.jwtSecret=", "gateway.config.auth.api_keys[0].key_file=/k"],
        "of which one is made",
    ),
    Refusal(
        &[
            "networkPolicy.enabled=true",
            "networkPolicy.egress.enabled=true",
            "redis.bundled.enabled=false",
            "redis.url=redis://a",
        ],
        "no gateway could reach Redis",
    ),
];

/// Both Helms refuse each, and say why; the values without the change are good, as the matrix has shown.
pub(crate) fn check(helm4: &Helm, helm3: &Helm, good: &Path) -> Result<()> {
    for Refusal(set, words) in SCHEMA.iter().chain(GUARDS) {
        for helm in [helm4, helm3] {
            match helm.template(RELEASE, NAMESPACE, &Given::file(good).with(set)) {
                Ok(_) => bail!("{} renders {set:?}", helm.program.display()),
                Err(error) if !format!("{error:#}").contains(words) => {
                    bail!("{set:?} is refused without the words {words:?}: {error:#}")
                }
                Err(_) => {}
            }
        }
    }
    println!("{} bad values are refused", SCHEMA.len() + GUARDS.len());
    Ok(())
}
