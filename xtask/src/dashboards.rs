//! `cargo xtask dashboards`: writes the Grafana dashboards of `deploy/grafana` from the panels listed in Rust.

mod fleet;
mod node;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::workspace::Workspace;

/// One dashboard.
struct Dashboard {
    file: &'static str,
    /// Keeps its address when the title changes.
    uid: &'static str,
    title: &'static str,
    about: &'static str,
    /// Stands for `@` in queries.
    selector: &'static str,
    variables: &'static [Variable],
    rows: &'static [Row],
}

/// What the reader chooses above the panels: values of a label.
struct Variable {
    label: &'static str,
    /// The series whose values are offered.
    of: &'static str,
    all: bool,
}

struct Row {
    title: &'static str,
    panels: &'static [Panel],
}

struct Panel {
    title: &'static str,
    about: &'static str,
    look: Look,
    unit: Unit,
    queries: &'static [Query],
}

struct Query {
    /// PromQL; `@` is the dashboard's selector.
    expr: &'static str,
    legend: &'static str,
}

#[derive(Clone, Copy)]
enum Look {
    /// One number, a sixth of the width.
    Number,
    /// The legend of one series, as large as a number.
    Name,
    /// Lines over time, a third of the width.
    Lines,
    /// Areas on top of each other, a third of the width.
    Areas,
    /// How many in which bucket of a histogram, a third of the width.
    Heat,
}

/// Names that Grafana knows.
#[derive(Clone, Copy)]
enum Unit {
    Count,
    PerSecond,
    Share,
    Seconds,
    Bytes,
    BytesPerSecond,
}

const WIDTH: u64 = 24;

pub(crate) fn run(workspace: &Workspace) -> Result<()> {
    for dashboard in all() {
        let path = path(workspace, dashboard);
        fs::write(&path, dashboard.text()?).with_context(|| format!("write {}", path.display()))?;
        println!("wrote {}", path.display());
    }
    Ok(())
}

fn all() -> [&'static Dashboard; 2] {
    [&fleet::FLEET, &node::NODE]
}

fn path(workspace: &Workspace, dashboard: &Dashboard) -> PathBuf {
    workspace.root.join("deploy/grafana").join(dashboard.file)
}

impl Dashboard {
    fn text(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(&self.json())? + "\n")
    }

    fn json(&self) -> Value {
        json!({
            "uid": self.uid,
            "title": self.title,
            "description": self.about,
            "tags": ["tidegate"],
            "schemaVersion": 39,
            "editable": true,
            "graphTooltip": 1,
            "refresh": "10s",
            "time": { "from": "now-1h", "to": "now" },
            "timezone": "browser",
            "templating": { "list": self.variables() },
            "panels": self.panels(),
        })
    }

    fn variables(&self) -> Vec<Value> {
        let source = json!({
            "name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus", "hide": 0,
        });
        std::iter::once(source).chain(self.variables.iter().map(Variable::json)).collect()
    }

    /// Panels from left to right, rows one below the other.
    fn panels(&self) -> Vec<Value> {
        let mut panels = Vec::new();
        let (mut x, mut y) = (0, 0);
        for row in self.rows {
            let id = panels.len() + 1;
            let place = json!({ "x": 0, "y": y, "w": WIDTH, "h": 1 });
            panels.push(json!({
                "id": id, "type": "row", "title": row.title, "gridPos": place, "collapsed": false, "panels": [],
            }));
            y += 1;
            let mut height = 0;
            for panel in row.panels {
                let (w, h) = panel.look.size();
                if x + w > WIDTH {
                    (x, y) = (0, y + height);
                }
                let place = json!({ "x": x, "y": y, "w": w, "h": h });
                panels.push(panel.json(panels.len() + 1, &place, self.selector));
                (x, height) = (x + w, h);
            }
            (x, y) = (0, y + height);
        }
        panels
    }
}

impl Variable {
    fn json(&self) -> Value {
        let query = format!("label_values({}, {})", self.of, self.label);
        let mut variable = json!({
            "name": self.label, "label": self.label, "type": "query", "datasource": datasource(),
            "query": query, "definition": query, "refresh": 2, "sort": 1, "hide": 0,
            "multi": self.all, "includeAll": self.all,
        });
        if self.all {
            // Also series without the label, such as the namespace outside of Kubernetes.
            variable["allValue"] = json!(".*");
            variable["current"] = json!({ "text": "All", "value": "$__all" });
        }
        variable
    }
}

impl Panel {
    fn json(&self, id: usize, place: &Value, selector: &str) -> Value {
        let targets: Vec<Value> = self
            .queries
            .iter()
            .zip('A'..)
            .map(|(query, name)| query.json(name, self.look, selector))
            .collect();
        json!({
            "id": id,
            "type": self.look.name(),
            "title": self.title,
            "description": self.about,
            "datasource": datasource(),
            "gridPos": place,
            "fieldConfig": {
                "defaults": { "unit": self.unit.name(), "min": 0, "custom": self.look.custom() },
                "overrides": [],
            },
            "options": self.look.options(self.queries.iter().any(|query| !query.legend.is_empty())),
            "targets": targets,
        })
    }
}

impl Query {
    fn json(&self, name: char, look: Look, selector: &str) -> Value {
        json!({
            "refId": name.to_string(),
            "datasource": datasource(),
            "expr": self.expr.replace('@', selector),
            "legendFormat": self.legend,
            "instant": look.is_instant(),
            "range": !look.is_instant(),
            "format": if matches!(look, Look::Heat) { "heatmap" } else { "time_series" },
        })
    }
}

impl Look {
    fn name(self) -> &'static str {
        match self {
            Look::Number | Look::Name => "stat",
            Look::Lines | Look::Areas => "timeseries",
            Look::Heat => "heatmap",
        }
    }

    fn size(self) -> (u64, u64) {
        match self {
            Look::Number | Look::Name => (4, 4),
            Look::Lines | Look::Areas | Look::Heat => (8, 8),
        }
    }

    /// One value, at the end of the time shown.
    fn is_instant(self) -> bool {
        matches!(self, Look::Number | Look::Name)
    }

    fn custom(self) -> Value {
        match self {
            Look::Lines => json!({ "lineWidth": 1, "fillOpacity": 0, "showPoints": "never" }),
            Look::Areas => json!({
                "lineWidth": 1, "fillOpacity": 30, "showPoints": "never", "stacking": { "mode": "normal" },
            }),
            Look::Number | Look::Name | Look::Heat => json!({}),
        }
    }

    /// How values are written; `named`: there is a legend to write beside them.
    fn options(self, named: bool) -> Value {
        let text = if named { "value_and_name" } else { "value" };
        match self {
            Look::Number => json!({ "reduceOptions": { "calcs": ["lastNotNull"] }, "textMode": text }),
            Look::Name => json!({ "reduceOptions": { "calcs": ["lastNotNull"] }, "textMode": "name" }),
            Look::Lines | Look::Areas => json!({
                "legend": { "displayMode": "list", "placement": "bottom" },
                "tooltip": { "mode": "multi", "sort": "desc" },
            }),
            Look::Heat => json!({ "calculate": false, "yAxis": { "unit": "s" } }),
        }
    }
}

impl Unit {
    fn name(self) -> &'static str {
        match self {
            Unit::Count => "short",
            Unit::PerSecond => "ops",
            Unit::Share => "percentunit",
            Unit::Seconds => "s",
            Unit::Bytes => "bytes",
            Unit::BytesPerSecond => "Bps",
        }
    }
}

fn datasource() -> Value {
    json!({ "type": "prometheus", "uid": "${datasource}" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_are_those_that_the_panels_make() {
        let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).ancestors().nth(1).map(PathBuf::from);
        let root = root.expect("xtask lies in the workspace");
        let workspace = Workspace { target: root.join("target"), root };
        for dashboard in all() {
            let file = path(&workspace, dashboard);
            let text = fs::read_to_string(&file).expect("a dashboard that was written");
            assert!(
                dashboard.text().expect("JSON") == text,
                "{} is stale: cargo xtask dashboards",
                file.display()
            );
        }
    }

    #[test]
    fn panels_do_not_overlap() {
        for dashboard in all() {
            let mut taken = std::collections::BTreeSet::new();
            for panel in dashboard.panels() {
                let at = |key: &str| panel["gridPos"][key].as_u64().expect("a number");
                assert!(at("x") + at("w") <= WIDTH, "{panel}");
                for (x, y) in (at("x")..at("x") + at("w"))
                    .flat_map(|x| (at("y")..at("y") + at("h")).map(move |y| (x, y)))
                {
                    assert!(taken.insert((x, y)), "{}: two panels at {x}, {y}", dashboard.title);
                }
            }
        }
    }

    #[test]
    fn every_panel_says_what_it_shows() {
        let rows = all().into_iter().flat_map(|dashboard| dashboard.rows);
        for panel in rows.flat_map(|row| row.panels) {
            assert!(panel.about.ends_with('.') && !panel.queries.is_empty(), "{}", panel.title);
            assert!(
                panel.queries.iter().all(|query| query.expr.contains('@')),
                "{} is of all deployments",
                panel.title
            );
        }
    }
}
