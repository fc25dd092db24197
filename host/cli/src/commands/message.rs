//! `latch message`.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use clap::ValueEnum as _;
use iothub_protocol::id::DeviceId;
use serde_json::{Map, Value, json};

use super::events::encoded;
use crate::args::{MessageCommand, SendArgs};
use crate::context::Context;
use crate::exit::EndedBadly;
use crate::output::{cell, document, line, say, table};

/// Most bytes of a message; the hub refuses more, but a file need not be read for that.
const MAX_BODY: u64 = 64 * 1024;

pub(super) async fn run(command: MessageCommand, context: &Context) -> anyhow::Result<()> {
    match command {
        MessageCommand::Send(args) => send(&args, context).await,
        MessageCommand::List { device } => list(&device, context).await,
        MessageCommand::Purge { device } => {
            let purged = context.service()?.purge_messages(&device).await?;
            if context.json {
                return document(&purged);
            }
            line(&format!("purged {} of {device}", messages(purged["totalMessagesPurged"].as_u64().unwrap_or(0))))
        }
        MessageCommand::Feedback { follow } => feedback(follow, context).await,
    }
}

async fn send(args: &SendArgs, context: &Context) -> anyhow::Result<()> {
    let message = message(args)?;
    let path = format!("/messages/{}?wait={}", encoded(args.device.as_str()), args.wait);
    let answer = context.admin().post(&path, &message).await?;
    if context.json {
        document(&answer)?;
    }
    let id = cell(&answer["messageId"]);
    if !args.wait {
        return match context.json {
            true => Ok(()),
            false => line(&format!("{id} queued until {}", cell(&answer["expiryTimeUtc"]))),
        };
    }
    let ended = cell(&answer["statusCode"]);
    if !context.json {
        line(&format!("{id} {ended}"))?;
    }
    match ended.as_str() {
        "Success" => Ok(()),
        _ => bail!(EndedBadly(format!("the message did not reach {}: {ended}", args.device))),
    }
}

fn message(args: &SendArgs) -> anyhow::Result<Value> {
    let mut properties = Map::new();
    for (name, value) in &args.properties {
        if properties.insert(name.clone(), json!(value)).is_some() {
            bail!("--property {name} is there twice");
        }
    }
    let ack = args.ack.to_possible_value().map(|value| value.get_name().to_owned());
    let mut message = json!({
        "messageId": args.message_id,
        "correlationId": args.correlation_id,
        "userId": args.user_id,
        "contentType": args.content_type,
        "contentEncoding": args.content_encoding,
        "expirySeconds": args.expiry,
        "ack": ack,
        "properties": properties,
    });
    match &args.file {
        Some(file) => message["bodyBase64"] = json!(BASE64.encode(read(file)?)),
        None => message["body"] = json!(args.body),
    }
    Ok(message)
}

fn read(file: &Path) -> anyhow::Result<Vec<u8>> {
    let cannot = || format!("cannot read {}", file.display());
    let size = fs::metadata(file).with_context(cannot)?.len();
    if size > MAX_BODY {
        bail!("{} has {size} bytes, and a message at most {MAX_BODY}", file.display());
    }
    fs::read(file).with_context(cannot)
}

async fn list(device: &DeviceId, context: &Context) -> anyhow::Result<()> {
    let queue = context.admin().get(&format!("/messages/{}", encoded(device.as_str()))).await?;
    if context.json {
        return document(&queue);
    }
    let columns = ["sequence", "messageId", "state", "deliveryCount", "expiryTimeUtc", "ack", "size"];
    let rows = queue.as_array().map(Vec::as_slice).unwrap_or_default().iter();
    let rows: Vec<_> = rows.map(|message| columns.iter().map(|column| cell(&message[column])).collect()).collect();
    table(&["NUMBER", "MESSAGE", "STATE", "GIVEN BACK", "EXPIRES", "ACK", "BYTES"], &rows)
}

async fn feedback(follow: bool, context: &Context) -> anyhow::Result<()> {
    let json = context.json;
    let path = format!("/feedback?follow={follow}");
    context.admin().lines(&path, |text| if json { line(text) } else { line(&for_people(text)) }).await?;
    if follow {
        say("the hub has stopped");
    }
    Ok(())
}

/// `2026-11-24T12:00:00.000Z door-0001 m1 Success`.
fn for_people(text: &str) -> String {
    let Ok(record) = serde_json::from_str::<Value>(text) else { return text.to_owned() };
    if record["kind"] == "missed" {
        return format!("({} events were not kept)", cell(&record["count"]));
    }
    let columns = ["enqueuedTimeUtc", "deviceId", "originalMessageId", "statusCode"];
    columns.map(|column| cell(&record[column])).join(" ")
}

fn messages(count: u64) -> String {
    format!("{count} {}", if count == 1 { "message" } else { "messages" })
}
