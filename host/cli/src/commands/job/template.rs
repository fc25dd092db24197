//! `latch job template`, and the values for `latch job run`.

use std::fs;

use anyhow::Context as _;
use iothub_service::ServiceClient;
use serde_json::{Map, Value};

use crate::args::TemplateCommand;
use crate::context::Context;
use crate::output::{cell, document, line, table};

pub(super) async fn run(command: TemplateCommand, service: &ServiceClient, context: &Context) -> anyhow::Result<()> {
    match command {
        TemplateCommand::Put { name, file } => {
            let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
            let body = serde_json::from_str(&text).with_context(|| format!("{} is not JSON", file.display()))?;
            let kept = service.put_template(&name, body).await?;
            if context.json { document(&kept) } else { line(&format!("{name} kept")) }
        }
        TemplateCommand::List => {
            let templates = service.templates().await?;
            if context.json {
                return document(&templates);
            }
            let rows: Vec<_> = templates.as_array().into_iter().flatten().map(row).collect();
            table(&["TEMPLATE", "PARAMETERS", "DESCRIPTION"], &rows)
        }
        TemplateCommand::Show { name } => document(&service.template(&name).await?),
        TemplateCommand::Delete { name } => {
            service.delete_template(&name).await?;
            if context.json { Ok(()) } else { line(&format!("{name} deleted")) }
        }
    }
}

/// `building rate=50`: those with a default show it.
fn row(template: &Value) -> Vec<String> {
    let parameters = template["parameters"].as_object().into_iter().flatten();
    let shown = parameters.map(|(name, parameter)| match parameter.get("default") {
        None => name.clone(),
        Some(Value::String(text)) => format!("{name}={text}"),
        Some(default) => format!("{name}={default}"),
    });
    let shown: Vec<_> = shown.collect();
    let description = template["description"].as_str().unwrap_or_default().to_owned();
    vec![cell(&template["name"]), shown.join(" "), description]
}

pub(super) fn values(
    texts: Vec<(String, String)>,
    documents: Vec<(String, String)>,
) -> anyhow::Result<Map<String, Value>> {
    let mut values = Map::new();
    for (name, text) in texts {
        values.insert(name, Value::String(text));
    }
    for (name, text) in documents {
        let value = serde_json::from_str(&text).with_context(|| format!("--set-json {name}: {text:?} is not JSON"))?;
        values.insert(name, value);
    }
    Ok(values)
}
