//! The JSON Schema against pipelines: what it takes and refuses is what the parser takes and refuses, as far as a schema
//! can tell.

mod support;

use serde_json::Value;
use support::Repo;

/// The part of draft 7 that our schema uses; an unknown word of it is an error, so that no rule is passed over.
fn valid(root: &Value, schema: &Value, value: &Value) -> bool {
    let schema = schema.as_object().unwrap();
    schema.iter().all(|(word, rule)| match word.as_str() {
        "$schema" | "title" | "description" | "definitions" => true,
        "$ref" => valid(root, root.pointer(rule.as_str().unwrap().trim_start_matches('#')).unwrap(), value),
        "const" => value == rule,
        "enum" => rule.as_array().unwrap().contains(value),
        "type" => match rule {
            Value::Array(any) => any.iter().any(|name| is(value, name.as_str().unwrap())),
            name => is(value, name.as_str().unwrap()),
        },
        "allOf" => rule.as_array().unwrap().iter().all(|schema| valid(root, schema, value)),
        "anyOf" => rule.as_array().unwrap().iter().any(|schema| valid(root, schema, value)),
        "oneOf" => rule.as_array().unwrap().iter().filter(|schema| valid(root, schema, value)).count() == 1,
        "required" => value.as_object().is_none_or(|map| {
            rule.as_array().unwrap().iter().all(|key| map.contains_key(key.as_str().unwrap()))
        }),
        "properties" => value.as_object().is_none_or(|map| {
            map.iter().all(|(key, value)| rule.get(key).is_none_or(|schema| valid(root, schema, value)))
        }),
        "additionalProperties" => value.as_object().is_none_or(|map| {
            let declared = schema.get("properties");
            map.iter().filter(|(key, _)| declared.is_none_or(|d| d.get(key.as_str()).is_none())).all(
                |(_, value)| match rule {
                    Value::Bool(allowed) => *allowed,
                    schema => valid(root, schema, value),
                },
            )
        }),
        "propertyNames" => value
            .as_object()
            .is_none_or(|map| map.keys().all(|key| valid(root, rule, &Value::String(key.clone())))),
        "minProperties" => value.as_object().is_none_or(|map| map.len() as u64 >= rule.as_u64().unwrap()),
        "items" => value.as_array().is_none_or(|list| list.iter().all(|value| valid(root, rule, value))),
        "minItems" => value.as_array().is_none_or(|list| list.len() as u64 >= rule.as_u64().unwrap()),
        "minLength" => value.as_str().is_none_or(|text| text.len() as u64 >= rule.as_u64().unwrap()),
        "minimum" => value.as_f64().is_none_or(|number| number >= rule.as_f64().unwrap()),
        "maximum" => value.as_f64().is_none_or(|number| number <= rule.as_f64().unwrap()),
        "pattern" => value.as_str().is_none_or(|text| matches(rule.as_str().unwrap(), text)),
        other => panic!("the schema has '{other}', which this test does not know"),
    })
}

fn is(value: &Value, name: &str) -> bool {
    match name {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "number" => value.is_number(),
        "integer" => value.is_i64() || value.is_u64(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        other => panic!("type '{other}'"),
    }
}

/// The patterns of the schema, each with what it means.
fn matches(pattern: &str, text: &str) -> bool {
    let name = |first: fn(char) -> bool, rest: &str| {
        text.len() <= 100
            && text.starts_with(first)
            && text.chars().all(|c| c.is_ascii_alphanumeric() || rest.contains(c))
    };
    let letter = |c: char| c.is_ascii_alphabetic() || c == '_';
    match pattern {
        "^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$" => name(|c| c.is_ascii_alphanumeric(), "._-"),
        "^[A-Za-z_][A-Za-z0-9_]{0,99}$" => name(letter, "_"),
        "^[A-Za-z_][A-Za-z0-9_-]{0,99}$" => name(letter, "_-"),
        "^[0-9a-fA-F]{64}$" => text.len() == 64 && text.chars().all(|c| c.is_ascii_hexdigit()),
        "^\\{[^{].*\\}$" => text.starts_with('{') && !text.starts_with("{{") && text.ends_with('}'),
        other => panic!("pattern '{other}'"),
    }
}

fn schema() -> Value {
    serde_json::from_str(include_str!("../schema/pipeline.schema.json")).unwrap()
}

fn yaml(text: &str) -> Value {
    serde_saphyr::from_str(text).unwrap()
}

#[test]
fn good_pipelines_are_valid() {
    let schema = schema();
    for (name, text) in [
        ("pipeline.yaml", include_str!("../pipeline.yaml")),
        ("init.yaml", include_str!("../src/command/init.yaml")),
    ] {
        assert!(valid(&schema, &schema, &yaml(text)), "{name}");
    }
}

#[test]
fn both_take_and_refuse_the_same() {
    let schema = schema();
    let good = "pools: { mine: 3 }\nvars: { n: 1 }\nstages:\n";
    for (stage, taken) in [
        ("{ shell: x }", true),
        ("{ run: [sh, 1], threads: 2, resources: { gpu: 0.5 } }", true),
        ("{ shell: x, threads: '{vars.n}' }", true),
        ("{ shell: x, pool: mine, retries: 3, timeout: 10, repeatable: statistical }", true),
        ("{ shell: x, fixed: true, files: { f: { sha256: null } } }", true),
        ("{ shell: x, matrix: { k: [1, a, true] }, where: [{ k: 1 }], params: { k: '{k}' } }", true),
        ("{ shell: x, threds: 2 }", false),
        ("{ shell: x, run: [y] }", false),
        ("{ threads: 2 }", false),
        ("{ shell: x, threads: 0 }", false),
        ("{ shell: x, threads: two }", false),
        ("{ shell: x, repeatable: often }", false),
        ("{ shell: x, resources: { gpu: 0 } }", false),
        ("{ shell: x, env: [1A] }", false),
        ("{ run: [] }", false),
        ("{ shell: x, fixed: true, files: { f: { sha256: abc } } }", false),
        ("{ shell: x, in: { a: 3 } }", false),
    ] {
        let text = format!("{good}  a: {stage}\n");
        let repo = Repo::new(&text);
        assert_eq!(repo.itpipe(&["graph"]).code == 0, taken, "the parser: {stage}");
        assert_eq!(
            valid(&schema, &schema, &yaml(&format!("version: 1\n{text}"))),
            taken,
            "the schema: {stage}"
        );
    }
}
