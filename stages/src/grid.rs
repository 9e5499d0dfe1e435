//! A grid of numbers and its four spellings: HTML, Markdown, LaTeX (booktabs), CSV. Knows no paper and no run.

use maud::{Markup, html};
use serde::{Deserialize, Serialize};

/// A table's body with its headers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Grid {
    pub caption: String,
    /// The headers of the label columns.
    pub stub: Vec<String>,
    pub columns: Vec<Column>,
    pub rows: Vec<Row>,
}

/// A column's header: neighbours of one group share a header above.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Column {
    /// Empty: no header above.
    pub group: String,
    pub label: String,
}

/// What a row holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RowKind {
    /// Values that the paper prints.
    Paper,
    /// Values of this run.
    Ours,
    /// Paired differences of this run.
    Difference,
    /// Anything else.
    Plain,
}

/// One row: as many labels as the stub has headers, as many cells as there are columns.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    pub kind: RowKind,
    pub labels: Vec<String>,
    pub cells: Vec<Cell>,
}

/// One number, or none.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "cell", rename_all = "kebab-case")]
pub enum Cell {
    /// Not run, or meaningless.
    Empty,
    /// As the paper prints it.
    Printed { value: f64, digits: usize },
    /// A count or an error, without an interval.
    Plain { value: f64, digits: usize },
    /// A mean over seeds, or a mean of paired differences (then with its sign).
    Measured {
        mean: f64,
        /// Of the 95 % interval; absent for one seed.
        half_width: Option<f64>,
        n: usize,
        digits: usize,
        signed: bool,
        /// The quantities that it comes from.
        quantities: Vec<String>,
    },
}

/// A number with so many decimals, without a negative zero, from a million on with an exponent; `signed`: with a plus. The
/// minus is U+2212.
pub fn decimal(value: f64, digits: usize, signed: bool) -> String {
    let size = value.abs();
    let text = if size < 1e6 { format!("{size:.digits$}") } else { format!("{size:.digits$e}") };
    let zero = text.bytes().all(|b| b == b'0' || b == b'.');
    match (zero, value < 0.0, signed) {
        (false, true, _) => format!("\u{2212}{text}"),
        (false, false, true) => format!("+{text}"),
        _ => text,
    }
}

/// The anchor of a quantity's entry in the report's appendix.
pub fn anchor(quantity: &str) -> String {
    let safe = |c: char| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' };
    format!("q-{}", quantity.chars().map(safe).collect::<String>())
}

impl Grid {
    /// The header line of [`Grid::csv`].
    pub const CSV_HEAD: &str = "table,part,row,column,kind,value,half_width,n,quantities\n";

    /// Runs of equal group headers: label and how many columns.
    fn groups(&self) -> Vec<(&str, usize)> {
        let mut groups: Vec<(&str, usize)> = vec![];
        for column in &self.columns {
            match groups.last_mut() {
                Some((label, n)) if *label == column.group && !column.group.is_empty() => *n += 1,
                _ => groups.push((&column.group, 1)),
            }
        }
        groups
    }

    /// How many rows from `at` on have the same first label; `None` if it is not the first of them.
    fn span(&self, at: usize) -> Option<usize> {
        let first = |i: usize| self.rows[i].labels.first();
        let starts = at == 0 || first(at) != first(at - 1);
        starts.then(|| (at..self.rows.len()).take_while(|i| first(*i) == first(at)).count())
    }

    /// An HTML table; measured cells link to their quantity's [`anchor`].
    pub fn html(&self) -> String {
        let grouped = self.columns.iter().any(|c| !c.group.is_empty());
        let markup: Markup = html! {
            div.grid tabindex="0" {
                table {
                    caption { (self.caption) }
                    thead {
                        @if grouped {
                            tr {
                                @for head in &self.stub { th.stub rowspan="2" scope="col" { (head) } }
                                @for (label, n) in self.groups() { th.group colspan=(n) scope="colgroup" { (label) } }
                            }
                            tr { @for column in &self.columns { th scope="col" { (column.label) } } }
                        } @else {
                            tr {
                                @for head in &self.stub { th.stub scope="col" { (head) } }
                                @for column in &self.columns { th scope="col" { (column.label) } }
                            }
                        }
                    }
                    tbody {
                        @for (i, row) in self.rows.iter().enumerate() {
                            @let span = self.span(i);
                            tr.(row.kind.word()).starts[span.is_some()] {
                                @if let Some(n) = span { th.place rowspan=(n) scope="rowgroup" { (row.labels[0]) } }
                                @for label in row.labels.iter().skip(1) { th scope="row" { (label) } }
                                @for cell in &row.cells { td { (cell.html()) } }
                            }
                        }
                    }
                }
            }
        };
        markup.into_string()
    }

    /// A Markdown table under its caption.
    pub fn markdown(&self) -> String {
        let head = |c: &Column| {
            if c.group.is_empty() { c.label.clone() } else { format!("{}: {}", c.group, c.label) }
        };
        let line = |words: Vec<String>| format!("| {} |\n", words.join(" | "));
        let mut text = format!("{}\n\n", escape_markdown(&self.caption));
        let heads = self.stub.iter().cloned().chain(self.columns.iter().map(head));
        text += &line(heads.map(|h| escape_markdown(&h)).collect());
        let rules = self.stub.iter().map(|_| "---").chain(self.columns.iter().map(|_| "---:"));
        text += &line(rules.map(str::to_string).collect());
        for row in &self.rows {
            let labels = row.labels.iter().map(|l| escape_markdown(l));
            text += &line(labels.chain(row.cells.iter().map(|c| c.text())).collect());
        }
        text
    }

    /// A LaTeX table for the package booktabs.
    pub fn latex(&self) -> String {
        let columns = format!("{}{}", "l".repeat(self.stub.len()), "r".repeat(self.columns.len()));
        let line = |words: Vec<String>| format!("    {} \\\\\n", words.join(" & "));
        let mut text = format!(
            "\\begin{{table}}\n  \\centering\n  \\caption{{{}}}\n  \\begin{{tabular}}{{{columns}}}\n    \\toprule\n",
            escape_latex(&self.caption)
        );
        if self.columns.iter().any(|c| !c.group.is_empty()) {
            let mut words = vec![String::new(); self.stub.len()];
            let (mut rules, mut at) = (String::new(), self.stub.len() + 1);
            for (label, n) in self.groups() {
                words.push(format!("\\multicolumn{{{n}}}{{c}}{{{}}}", escape_latex(label)));
                rules += &format!("\\cmidrule(lr){{{at}-{}}}", at + n - 1);
                at += n;
            }
            text += &line(words);
            text += &format!("    {rules}\n");
        }
        let heads = self.stub.iter().chain(self.columns.iter().map(|c| &c.label));
        text += &line(heads.map(|h| escape_latex(h)).collect());
        text += "    \\midrule\n";
        for (i, row) in self.rows.iter().enumerate() {
            let starts = self.span(i).is_some();
            if starts && i > 0 {
                text += "    \\addlinespace\n";
            }
            let labels = row.labels.iter().enumerate();
            let labels = labels.map(|(j, l)| if j == 0 && !starts { String::new() } else { escape_latex(l) });
            text += &line(labels.chain(row.cells.iter().map(|c| c.latex())).collect());
        }
        text + "    \\bottomrule\n  \\end{tabular}\n\\end{table}\n"
    }

    /// One line for each cell that is not empty, without the header; `table` is the first field.
    pub fn csv(&self, table: &str) -> String {
        let mut text = String::new();
        for row in &self.rows {
            for (column, cell) in self.columns.iter().zip(&row.cells) {
                let (value, half, n, from) = match cell {
                    Cell::Empty => continue,
                    Cell::Printed { value, .. } | Cell::Plain { value, .. } => {
                        (value, None, String::new(), String::new())
                    }
                    Cell::Measured { mean, half_width, n, quantities, .. } => {
                        (mean, *half_width, n.to_string(), quantities.join(" - "))
                    }
                };
                let half = half.map(|h| h.to_string()).unwrap_or_default();
                let head = if column.group.is_empty() {
                    column.label.clone()
                } else {
                    format!("{}: {}", column.group, column.label)
                };
                let fields = [
                    table,
                    &self.caption,
                    &row.labels.join(", "),
                    &head,
                    row.kind.word(),
                    &value.to_string(),
                    &half,
                    &n,
                    &from,
                ];
                text += &fields.map(escape_csv).join(",");
                text.push('\n');
            }
        }
        text
    }
}

impl RowKind {
    /// The word in CSS classes and files.
    pub fn word(self) -> &'static str {
        match self {
            RowKind::Paper => "paper",
            RowKind::Ours => "ours",
            RowKind::Difference => "difference",
            RowKind::Plain => "plain",
        }
    }
}

impl Cell {
    fn html(&self) -> Markup {
        match self {
            Cell::Empty => html! { span.empty { "–" } },
            Cell::Printed { value, digits } | Cell::Plain { value, digits } => {
                html! { (decimal(*value, *digits, false)) }
            }
            Cell::Measured { mean, half_width, n, digits, signed, quantities } => {
                let href = quantities.first().map(|q| format!("#{}", anchor(q))).unwrap_or_default();
                html! {
                    a href=(href) { (decimal(*mean, *digits, *signed)) }
                    small {
                        @if let Some(half) = half_width { "± " (decimal(*half, *digits, false)) " " }
                        span.n { "n " (n) }
                    }
                }
            }
        }
    }

    /// Plain text, as Markdown shows it.
    fn text(&self) -> String {
        match self {
            Cell::Empty => "–".to_string(),
            Cell::Printed { value, digits } | Cell::Plain { value, digits } => {
                decimal(*value, *digits, false)
            }
            Cell::Measured { mean, half_width, n, digits, signed, .. } => {
                let half =
                    half_width.map(|h| format!(" ± {}", decimal(h, *digits, false))).unwrap_or_default();
                format!("{}{half} (n {n})", decimal(*mean, *digits, *signed))
            }
        }
    }

    fn latex(&self) -> String {
        match self {
            Cell::Empty => "--".to_string(),
            Cell::Measured { mean, half_width, n, digits, signed, .. } => {
                let half =
                    half_width.map(|h| format!(" \\pm {}", decimal(h, *digits, false))).unwrap_or_default();
                let mean = decimal(*mean, *digits, *signed).replace('\u{2212}', "-");
                format!("${mean}{half}$ {{\\scriptsize ($n={n}$)}}")
            }
            other => other.text(),
        }
    }
}

fn escape_markdown(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        if matches!(c, '\\' | '|' | '*' | '_' | '<' | '>' | '`' | '#' | '[' | ']') {
            out.push('\\');
        }
        out.push(if c == '\n' { ' ' } else { c });
    }
    out
}

/// Text for LaTeX with an engine of 8 or more bits: the ten special characters escaped, our few symbols as commands.
pub fn escape_latex(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '&' | '%' | '$' | '#' | '_' | '{' | '}' => {
                out.push('\\');
                out.push(c);
            }
            '\\' => out += "\\textbackslash{}",
            '~' => out += "\\textasciitilde{}",
            '^' => out += "\\textasciicircum{}",
            '<' => out += "\\textless{}",
            '>' => out += "\\textgreater{}",
            'γ' => out += "$\\gamma$",
            'ℓ' => out += "$\\ell$",
            '±' => out += "$\\pm$",
            '\u{2212}' => out += "$-$",
            '–' => out += "--",
            '—' => out += "---",
            '\n' => out.push(' '),
            other => out.push(other),
        }
    }
    out
}

/// A CSV field, quoted where it must be (RFC 4180).
pub fn escape_csv(text: &str) -> String {
    if text.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text.to_string()
    }
}

#[cfg(test)]
mod tests;
