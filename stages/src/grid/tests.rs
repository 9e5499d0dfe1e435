//! Escaping and the four spellings of one small grid.

use super::*;

fn grid() -> Grid {
    let measured = |mean, half_width, n, signed, q: &str| Cell::Measured {
        mean,
        half_width,
        n,
        digits: 1,
        signed,
        quantities: vec![q.to_string()],
    };
    let column = |group: &str, label: &str| Column { group: group.into(), label: label.into() };
    let row = |kind, label: &str, cells| Row { kind, labels: vec!["1:10".into(), label.into()], cells };
    Grid {
        caption: "100 % of A & B_1".into(),
        stub: vec!["ratio".into(), "row".into()],
        columns: vec![column("ERM", "worst"), column("ERM", "average"), column("IT <W>", "worst")],
        rows: vec![
            row(
                RowKind::Paper,
                "paper, best γ",
                vec![
                    Cell::Printed { value: 64.3, digits: 1 },
                    Cell::Printed { value: 85.65, digits: 2 },
                    Cell::Empty,
                ],
            ),
            row(
                RowKind::Ours,
                "here",
                vec![
                    measured(63.04, Some(1.26), 3, false, "d/10/erm/worst"),
                    measured(-0.04, None, 1, true, "d/10/erm/average"),
                    measured(-1.5, Some(0.5), 3, true, "d/10/it@0.5/worst"),
                ],
            ),
        ],
    }
}

#[test]
fn markdown() {
    assert_eq!(
        grid().markdown(),
        "100 % of A & B\\_1\n\n\
         | ratio | row | ERM: worst | ERM: average | IT \\<W\\>: worst |\n\
         | --- | --- | ---: | ---: | ---: |\n\
         | 1:10 | paper, best γ | 64.3 | 85.65 | – |\n\
         | 1:10 | here | 63.0 ± 1.3 (n 3) | 0.0 (n 1) | −1.5 ± 0.5 (n 3) |\n"
    );
}

#[test]
fn latex() {
    assert_eq!(
        grid().latex(),
        r"\begin{table}
  \centering
  \caption{100 \% of A \& B\_1}
  \begin{tabular}{llrrr}
    \toprule
     &  & \multicolumn{2}{c}{ERM} & \multicolumn{1}{c}{IT \textless{}W\textgreater{}} \\
    \cmidrule(lr){3-4}\cmidrule(lr){5-5}
    ratio & row & worst & average & worst \\
    \midrule
    1:10 & paper, best $\gamma$ & 64.3 & 85.65 & -- \\
     & here & $63.0 \pm 1.3$ {\scriptsize ($n=3$)} & $0.0$ {\scriptsize ($n=1$)} & $-1.5 \pm 0.5$ {\scriptsize ($n=3$)} \\
    \bottomrule
  \end{tabular}
\end{table}
"
    );
    assert_eq!(escape_latex(r"\ {x}^~#$"), r"\textbackslash{} \{x\}\textasciicircum{}\textasciitilde{}\#\$");
}

#[test]
fn csv() {
    assert_eq!(
        grid().csv("t"),
        "t,100 % of A & B_1,\"1:10, paper, best γ\",ERM: worst,paper,64.3,,,\n\
         t,100 % of A & B_1,\"1:10, paper, best γ\",ERM: average,paper,85.65,,,\n\
         t,100 % of A & B_1,\"1:10, here\",ERM: worst,ours,63.04,1.26,3,d/10/erm/worst\n\
         t,100 % of A & B_1,\"1:10, here\",ERM: average,ours,-0.04,,1,d/10/erm/average\n\
         t,100 % of A & B_1,\"1:10, here\",IT <W>: worst,ours,-1.5,0.5,3,d/10/it@0.5/worst\n"
    );
    assert_eq!(escape_csv("a \"b\""), "\"a \"\"b\"\"\"");
}

#[test]
fn html_escapes_and_links() {
    let html = grid().html();
    assert!(html.contains("IT &lt;W&gt;") && html.contains("A &amp; B_1"), "{html}");
    assert!(html.contains(
        "<a href=\"#q-d-10-it-0.5-worst\">−1.5</a><small>± 0.5 <span class=\"n\">n 3</span></small>"
    ));
    assert!(html.contains("<th class=\"place\" rowspan=\"2\" scope=\"rowgroup\">1:10</th>"), "{html}");
    assert_eq!(html.matches("<td>").count(), 6);
}

#[test]
fn decimals() {
    assert_eq!(decimal(-0.04, 1, true), "0.0");
    assert_eq!(decimal(0.06, 1, true), "+0.1");
    assert_eq!(decimal(-2.25, 1, false), "\u{2212}2.2");
}
