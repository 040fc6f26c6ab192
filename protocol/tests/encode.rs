//! What the worker writes: one line each, no number that is none, and read back as it was meant.

use std::time::Instant;

use proptest::prelude::*;
use serde_json::{Value, json};
use worker_orcd_protocol::codec::{Incoming, decode_line, decode_output, encode_call, encode_line};
use worker_orcd_protocol::*;

fn encoded(outgoing: &Outgoing) -> String {
    let mut out = b"before\n".to_vec();
    encode_line(outgoing, &mut out);
    let text = String::from_utf8(out).unwrap();
    let line = text
        .strip_prefix("before\n")
        .unwrap()
        .strip_suffix('\n')
        .unwrap();
    assert!(!line.contains(['\n', '\r', '\0']), "{line}");
    line.to_owned()
}

fn token(text: &str, logprob: Option<f32>) -> Notification {
    let top = logprob.map(|logprob| TopLogprob {
        token_id: 3,
        text: text.into(),
        logprob,
    });
    Notification::Token(Token {
        request_id: Id::String(text.into()),
        index: 1,
        token_id: 2,
        text: text.into(),
        logprob,
        top_logprobs: top.into_iter().collect(),
    })
}

#[test]
fn fields_stand_in_the_order_of_the_documentation() {
    assert_eq!(
        encoded(&Outgoing::Notification(token("a", None))),
        r#"{"jsonrpc":"2.0","method":"token","params":{"request_id":"a","index":1,"token_id":2,"text":"a"}}"#
    );
    assert_eq!(
        encoded(&Outgoing::Notification(token("a", Some(-0.5)))),
        r#"{"jsonrpc":"2.0","method":"token","params":{"request_id":"a","index":1,"token_id":2,"text":"a","logprob":-0.5,"top_logprobs":[{"token_id":3,"text":"a","logprob":-0.5}]}}"#
    );
    let result = MethodResult::Cancel(CancelResult { found: true });
    assert_eq!(
        encoded(&Outgoing::Result {
            id: Id::Number(-1),
            result
        }),
        r#"{"jsonrpc":"2.0","id":-1,"result":{"found":true}}"#
    );
    let error = ErrorObject::new(ErrorCode::Internal, "x");
    assert_eq!(
        encoded(&Outgoing::Error { id: None, error }),
        r#"{"jsonrpc":"2.0","id":null,"error":{"code":-32603,"message":"x","data":{"code":"INTERNAL","retriable":false}}}"#
    );
}

fn sampling_without_numbers() -> Sampling {
    Sampling {
        max_tokens: 1,
        min_tokens: 0,
        temperature: f32::NAN,
        top_n_sigma: None,
        top_k: 0,
        typical_p: f32::NEG_INFINITY,
        top_p: 0.9,
        min_p: f32::INFINITY,
        xtc: None,
        repetition_penalty: 1.1,
        presence_penalty: f32::NAN,
        frequency_penalty: 0.5,
        penalty_last_n: -1,
        dry: None,
        logit_bias_tokens: 0,
        ignore_eos: false,
    }
}

#[test]
fn numbers_that_are_none_never_reach_the_wire() {
    for (logprob, wanted) in [
        (f32::NEG_INFINITY, limits::LOGPROB_FLOOR),
        (f32::NAN, limits::LOGPROB_FLOOR),
        (f32::MIN, limits::LOGPROB_FLOOR),
        (f32::INFINITY, 0.0),
        (1e-7, 0.0),
        (-1.25, -1.25),
    ] {
        let line: Value =
            serde_json::from_str(&encoded(&Outgoing::Notification(token("a", Some(logprob)))))
                .unwrap();
        assert_eq!(
            line["params"]["logprob"].as_f64(),
            Some(f64::from(wanted)),
            "{logprob}"
        );
        assert_eq!(
            line["params"]["top_logprobs"][0]["logprob"].as_f64(),
            Some(f64::from(wanted)),
            "{logprob}"
        );
    }
    let timings = Timings {
        queue_ms: f64::NAN,
        prefill_ms: f64::INFINITY,
        ttft_ms: f64::NEG_INFINITY,
        decode_ms: f64::MAX,
        prompt_per_second: 1.0 / 3.0,
        predicted_per_second: -f64::NAN,
        ..Default::default()
    };
    let result = GenerateResult {
        finish_reason: FinishReason::Timeout,
        stop_reason: None,
        grammar_complete: None,
        usage: Usage::new(3, 1, 2),
        timings,
        seed: u64::MAX,
        sampling: sampling_without_numbers(),
        tail: String::new(),
        text: None,
        logprobs: None,
        prompt_logprobs: None,
        prompt_token_ids: None,
        token_ids: None,
    };
    let line = encoded(&Outgoing::Result {
        id: Id::Number(1),
        result: MethodResult::Generate(Box::new(result)),
    });
    let wanted = concat!(
        r#"{"jsonrpc":"2.0","id":1,"result":{"finish_reason":"timeout","stop_reason":null,"#,
        r#""usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5,"prompt_tokens_details":{"cached_tokens":1}},"#,
        r#""timings":{"queue_ms":0.0,"prefill_ms":0.0,"ttft_ms":0.0,"decode_ms":0.0,"prompt_per_second":0.333,"#,
        r#""predicted_per_second":0.0,"drafted":0,"accepted":0},"seed":18446744073709551615,"#,
        r#""sampling":{"max_tokens":1,"min_tokens":0,"temperature":0.0,"top_k":0,"typical_p":0.0,"top_p":0.9,"min_p":0.0,"#,
        r#""repetition_penalty":1.1,"presence_penalty":0.0,"frequency_penalty":0.5,"penalty_last_n":-1,"logit_bias_tokens":0,"#,
        r#""ignore_eos":false},"tail":""}}"#
    );
    assert_eq!(line, wanted);
}

#[test]
fn stop_reasons_are_words_numbers_or_null() {
    for (reason, text) in [
        (StopReason::Eos, "\"eos\""),
        (StopReason::MaxTokens, "\"max_tokens\""),
        (StopReason::Context, "\"context\""),
        (StopReason::StopString("\n\n".into()), r#""\n\n""#),
        (StopReason::StopToken(7), "7"),
    ] {
        assert_eq!(serde_json::to_string(&reason).unwrap(), text);
        assert_eq!(serde_json::from_str::<StopReason>(text).unwrap(), reason);
    }
}

#[test]
fn a_client_passes_over_what_it_does_not_know() {
    let unknown = br#"{"jsonrpc":"2.0","method":"more_to_come","params":{"from":0}}"#;
    assert_eq!(
        decode_output(unknown).unwrap(),
        Incoming::UnknownNotification {
            method: "more_to_come".into()
        }
    );
    let more = br#"{"jsonrpc":"2.0","method":"token","params":{"request_id":1,"index":0,"token_id":2,"text":"","new":[]},"x":1}"#;
    assert!(matches!(
        decode_output(more).unwrap(),
        Incoming::Notification(Notification::Token(_))
    ));
    let response = br#"{"jsonrpc":"2.0","id":1,"result":{"found":true}}"#;
    assert_eq!(
        decode_output(response).unwrap(),
        Incoming::Response {
            id: Some(Id::Number(1)),
            outcome: Ok(json!({"found": true}))
        }
    );
    for line in [
        "",
        "printf says hello",
        "[]",
        r#"{"jsonrpc":"2.0"}"#,
        r#"{"id":1,"result":{}}"#,
        r#"{"jsonrpc":"2.0","id":1,"result":{},"error":{}}"#,
    ] {
        decode_output(line.as_bytes()).unwrap_err();
    }
}

#[test]
fn prometheus_text_has_every_figure_with_its_labels() {
    let mut histogram = Histogram::with_bounds(&[1.0, 2.5]);
    for value in [0.5, 1.0, 2.0, 9.0, f64::NAN, f64::INFINITY] {
        histogram.observe(value);
    }
    let counts: Vec<u64> = histogram
        .buckets
        .iter()
        .map(|bucket| bucket.count)
        .collect();
    assert_eq!(
        (counts, histogram.sum, histogram.count),
        (vec![2, 3], 12.5, 4)
    );
    let metrics = Metrics {
        labels: MetricsLabels {
            worker_id: "a\"b\\c\nd".into(),
            model: "m".into(),
            quant_kind: "Q4_1".into(),
            device: "cpu".into(),
        },
        requests: RequestCounts {
            stop: 3,
            ..Default::default()
        },
        inter_token_ms: histogram,
        ..Default::default()
    };
    let text = metrics.to_prometheus();
    let labels = r#"worker_id="a\"b\\c\nd",model="m",quant_kind="Q4_1",device="cpu""#;
    for line in [
        format!("worker_orcd_requests_total{{outcome=\"stop\",{labels}}} 3"),
        format!("worker_orcd_inter_token_milliseconds_bucket{{le=\"2.5\",{labels}}} 3"),
        format!("worker_orcd_inter_token_milliseconds_bucket{{le=\"+Inf\",{labels}}} 4"),
        format!("worker_orcd_inter_token_milliseconds_sum{{{labels}}} 12.5"),
        "# TYPE worker_orcd_inter_token_milliseconds histogram".to_owned(),
    ] {
        assert!(
            text.lines().any(|other| other == line),
            "{line} is not in:\n{text}"
        );
    }
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    assert!(samples.clone().count() > 20 && samples.clone().all(|line| line.contains(labels)));
}

#[test]
fn a_token_and_a_health_request_take_microseconds() {
    let token = Outgoing::Notification(token(" hello", None));
    let mut out = Vec::new();
    let rounds = 20_000;
    let start = Instant::now();
    for _ in 0..rounds {
        out.clear();
        encode_line(&token, &mut out);
        decode_line(br#"{"jsonrpc":"2.0","id":1,"method":"health"}"#).unwrap();
    }
    let micros = start.elapsed().as_secs_f64() * 1e6 / f64::from(rounds);
    assert!(micros < 50.0, "{micros} µs");
}

#[test]
fn the_longest_request_is_read_in_linear_time() {
    let size = limits::LINE_BYTES_MAX - 100;
    let plain =
        json!({"id": 1, "method": "generate", "params": {"prompt": "x".repeat(size)}}).to_string();
    let escaped =
        json!({"id": 1, "method": "generate", "params": {"prompt": "\n".repeat(size / 2)}})
            .to_string();
    let start = Instant::now();
    for line in [plain, escaped] {
        decode_line(line.as_bytes()).unwrap();
    }
    assert!(start.elapsed().as_secs() < 5, "{:?}", start.elapsed());
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-3i64..3).prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        (-3.0f64..3.0).prop_map(Value::from),
        any::<f64>().prop_map(|value| if value.is_finite() {
            json!(value)
        } else {
            Value::Null
        }),
        prop_oneof![
            Just(""),
            Just("user"),
            Just("text"),
            Just("now"),
            Just("json"),
            Just("2.0"),
            Just("é\n")
        ]
        .prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((any_field(), inner), 0..4)
                .prop_map(|entries| Value::Object(entries.into_iter().collect())),
        ]
    })
}

/// A field's name that stands somewhere in the protocol.
fn any_field() -> impl Strategy<Value = String> {
    let mut names: Vec<String> = schema::generate_fields();
    for more in [
        "role",
        "content",
        "type",
        "text",
        "request_id",
        "id",
        "requestId",
        "token_ids",
        "with_pieces",
        "format",
        "mode",
        "protocol_version",
        "client_info",
        "sequence_breakers",
        "multiplier",
        "name",
        "version",
        "zzz",
    ] {
        names.push(more.to_owned());
    }
    prop::sample::select(names)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever comes, the answer is a request or an error from the checker: never a panic, and never the error that
    /// says that the checker took what the types refuse.
    #[test]
    fn the_checker_takes_nothing_that_the_types_refuse(
        method in prop::sample::select(Method::ALL.to_vec()),
        entries in prop::collection::vec((any_field(), any_json()), 0..5),
        id in any_json(),
    ) {
        let params: Value = entries.into_iter().collect::<serde_json::Map<_, _>>().into();
        for id in [id, json!(1)] {
            let line = json!({"id": id, "method": method.name(), "params": params}).to_string();
            if let Err(reject) = decode_line(line.as_bytes()) {
                prop_assert!(!reject.error.data.errors.is_empty(), "{} {}", line, reject.error);
                prop_assert!(encoded(&reject.into()).len() < limits::STREAM_LINE_BYTES_MAX);
            }
        }
    }

    /// A request that is changed in one place is mostly right but for that place.
    #[test]
    fn one_field_of_any_kind_in_a_right_request(field in any_field(), value in any_json()) {
        let mut params = json!({"messages": [{"role": "user", "content": "a"}], "temperature": 0.5});
        params[&field] = value;
        let line = json!({"id": 1, "method": "generate", "params": params}).to_string();
        if let Err(reject) = decode_line(line.as_bytes()) {
            let errors = &reject.error.data.errors;
            prop_assert!(errors.iter().any(|fault| fault.field.starts_with(&field) || fault.constraint.contains("messages")
                || fault.constraint.contains("with prompt")), "{} {:?}", line, errors);
        }
    }

    #[test]
    fn no_bytes_make_the_codec_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), cut in 0usize..100, flip in 0usize..100) {
        let _ = decode_line(&bytes);
        let _ = decode_output(&bytes);
        let mut line = br#"{"jsonrpc":"2.0","id":"a","method":"generate","params":{"prompt_token_ids":[1,2],"stop":["x"]}}"#.to_vec();
        let _ = decode_line(&line[..cut.min(line.len())]);
        let index = flip % line.len();
        line[index] = bytes.first().copied().unwrap_or(0);
        let _ = decode_line(&line);
    }

    #[test]
    fn what_is_written_is_read_back(text in any::<String>(), logprob in prop::option::of(-100.0f32..0.0), number in any::<i64>()) {
        let notification = token(&text, logprob);
        let line = encoded(&Outgoing::Notification(notification.clone()));
        prop_assert_eq!(decode_output(line.as_bytes()).unwrap(), Incoming::Notification(notification));

        let id = Id::Number(number);
        let content = Content::Parts(vec![ContentPart { kind: ContentPartKind::Text, text: text.clone() }]);
        let params = GenerateParams {
            messages: Some(vec![Message { content, ..Message::new(Role::User, "") }]),
            stop: vec![text.chars().take(10).chain(['x']).collect()],
            temperature: logprob.map_or(1.0, |value| -value / 100.0),
            ..Default::default()
        };
        let call = Call { id: Some(id), request: Request::Generate(Box::new(params)) };
        let mut out = Vec::new();
        encode_call(&call, &mut out);
        prop_assert_eq!(decode_line(out.strip_suffix(b"\n").unwrap()).unwrap(), call);
    }
}
