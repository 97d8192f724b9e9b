//! What users rely on, as it is written down: a change of it is a change of a file that a review sees.

#[test]
fn description_of_the_operators_interface_is_the_one_on_file() {
    insta::assert_snapshot!("openapi", crate::openapi());
}

#[test]
fn metrics_are_those_on_file() {
    let lines: Vec<_> = crate::metrics()
        .map(|(name, kind, labels, help)| {
            let labels = if labels.is_empty() {
                String::new()
            } else {
                format!(" by {}", labels.join(", "))
            };
            format!("{name} ({kind}{labels}): {help}")
        })
        .collect();
    insta::assert_snapshot!("metrics", lines.join("\n"));
}
