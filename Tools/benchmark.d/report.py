"""The figures as Markdown: tables for people, one line for each floor."""

import re
import statistics

from catalogue import FLOORS, MEASURES, MEMORY_FLOOR
from machine import Failure

BY_NAME = {measure.name: measure for measure in MEASURES}


class Report:
    def __init__(self, results, filesystems, facts):
        self.results, self.filesystems, self.facts = results, filesystems, facts
        self.fuse_peers = [name for name in filesystems if name not in ("daybook", "ext4")]

    # Figures

    def rates(self, measure, filesystem, settled=False):
        samples = self.results.samples[measure].get(filesystem, [])
        return [sample.settled_rate if settled else sample.rate for sample in samples]

    def median(self, measure, filesystem, settled=False):
        rates = self.rates(measure, filesystem, settled)
        return statistics.median(rates) if rates else None

    def best_peer(self, measure, settled=False):
        """(rate, name) of the fastest FUSE peer, or nothing."""
        known = [(self.median(measure, name, settled), name) for name in self.fuse_peers]
        return max((pair for pair in known if pair[0]), default=None)

    def ratio(self, measure, against, settled=False):
        """Daybook's speed over that of ext4 or of the best FUSE peer."""
        own = self.median(measure, "daybook", settled)
        if against == "fuse":
            best = self.best_peer(measure, settled)
            other = best[0] if best else None
        else:
            other = self.median(measure, against, settled)
        return own / other if own and other else None

    # Cells

    @staticmethod
    def number(value, unit):
        if unit == "s":
            value = 1 / value
        if value >= 100:
            return f"{value:,.0f}".replace(",", " ")
        return f"{value:.1f}" if value >= 10 else f"{value:.2f}"

    def cell(self, measure, filesystem, settled=False):
        rates = self.rates(measure.name, filesystem, settled)
        if not rates:
            return "failed" if any(f[0] == filesystem for f in self.results.failures) else "–"
        middle = statistics.median(rates)
        text = self.number(middle, measure.unit)
        if len(rates) > 1:
            text += f" ±{(max(rates) - min(rates)) / 2 / middle * 100:.0f} %"
        return text

    def ratio_cell(self, ratio, name=None):
        if ratio is None:
            return "–"
        return f"{ratio:.2f}×" + (f" {name}" if name else "")

    # Tables

    def table(self, settled):
        rows = [measure for measure in MEASURES if self.results.samples.get(measure.name)]
        if settled:
            rows = [measure for measure in rows if measure.settled]
        if not rows:
            return []
        own = "daybook" in self.filesystems
        heads = ["", *self.filesystems] + (["to ext4", "to the best FUSE peer"] if own else [])
        lines = ["| " + " | ".join(heads) + " |", "|" + "---|" + "---:|" * (len(heads) - 1)]
        for measure in rows:
            cells = [f"{measure.title} ({measure.unit})"]
            cells += [self.cell(measure, name, settled) for name in self.filesystems]
            if own:
                best = self.best_peer(measure.name, settled)
                cells.append(self.ratio_cell(self.ratio(measure.name, "ext4", settled)))
                cells.append(self.ratio_cell(self.ratio(measure.name, "fuse", settled), best and best[1]))
            lines.append("| " + " | ".join(cells) + " |")
        return lines

    def durability(self):
        rows = [measure for measure in MEASURES if measure.durable and self.results.samples.get(measure.name)]
        if not rows:
            return []
        lines = ["| flushes of the disk an operation; 99 % took less than | " + " | ".join(self.filesystems) + " |",
                 "|---|" + "---:|" * len(self.filesystems)]
        for measure in rows:
            cells = [measure.title]
            for name in self.filesystems:
                samples = self.results.samples[measure.name].get(name, [])
                if not samples:
                    cells.append("–")
                    continue
                slowest = statistics.median(sample.slowest_percent for sample in samples) * 1000
                flushes = [sample.flushes for sample in samples if sample.flushes is not None]
                count = f"{statistics.median(flushes):.2f}" if flushes else "?"
                cells.append(f"{count}; {slowest:.2f} ms")
            lines.append("| " + " | ".join(cells) + " |")
        return lines

    def cost(self):
        daemons = [name for name in self.filesystems if self.results.memory.get(name)]
        if not daemons:
            return []
        lines = ["| daemon | " + " | ".join(daemons) + " |", "|---|" + "---:|" * len(daemons)]
        memory = [f"{self.results.memory[name] / (1 << 20):.0f} MiB" for name in daemons]
        lines.append("| peak of resident memory | " + " | ".join(memory) + " |")
        seconds = [f"{statistics.median(self.results.daemon_seconds[name]):.1f} s" for name in daemons]
        lines.append("| its processor time, a round | " + " | ".join(seconds) + " |")
        if self.results.memory_many:
            memory = [f"{self.results.memory_many[name] / (1 << 20):.0f} MiB" if name in self.results.memory_many else "–"
                      for name in daemons]
            lines.append(f"| peak with {self.facts['many']:,} files | ".replace(",", " ") + " | ".join(memory) + " |")
        return lines

    # Floors

    def floors(self):
        """[(whether met, or None where it was not measured, line)]"""
        lines = []
        for name, against, least in FLOORS:
            measure = BY_NAME[name]
            best = self.best_peer(name)
            other = "ext4" if against == "ext4" else f"best FUSE peer ({best[1] if best else 'none'})"
            ratio = self.ratio(name, against)
            if ratio is None:
                lines.append((None, f"{measure.title}: ≥ {least}× {other}: not measured"))
                continue
            met, text = ratio >= least, f"{ratio:.2f}×"
            if measure.settled:
                settled = self.ratio(name, against, True)
                met = met and settled >= least
                text += f", {settled:.2f}× until on the disk"
            lines.append((met, f"{measure.title}: ≥ {least}× {other}: {text}: {'met' if met else '**missed**'}"))
        peaks = [table["daybook"] for table in (self.results.memory, self.results.memory_many) if table.get("daybook")]
        if peaks:
            met = max(peaks) < MEMORY_FLOOR
            lines.append((met, f"daemon memory below {MEMORY_FLOOR >> 20} MiB: {max(peaks) / (1 << 20):.0f} MiB: "
                               f"{'met' if met else '**missed**'}"))
        return lines

    def markdown(self):
        facts = self.facts
        rounds = "1 round" if facts["rounds"] == 1 else f"{facts['rounds']} rounds"
        parts = [
            f"`{facts['command']}`, {facts['date']}; {rounds}, seed {facts['seed']}, {facts['order']}.",
            f"{facts['kernel']}, {facts['processors']}, {facts['memory']}; images of {facts['image'] / (1 << 30):.0f} GiB; "
            f"source tree of {facts['tree']}. {facts['load']}".strip(),
            "",
            "Medians, ± half the range; seconds where the unit is s, else the more the better. Ratios are of speed.", "",
            *self.table(settled=False), "",
        ]
        settled = self.table(settled=True)
        if settled:
            parts += ["The same until everything is on the disk: unmount, the daemon's end and an fsync of the image "
                      "included.", "", *settled, ""]
        for table in (self.durability(), self.cost()):
            if table:
                parts += [*table, ""]
        if "daybook" in self.filesystems:
            parts += ["Floors:", "", *(f"- {line}" for _, line in self.floors()), ""]
        if self.results.failures:
            lines = [f"- {name}, {group}: {message}" for name, group, message in self.results.failures]
            parts += ["Failed:", "", *lines, ""]
        return "\n".join(parts).rstrip() + "\n"


def insert(path, section, text):
    """Replaces what stands between the section's two markers; everything else in the file is left as it is."""
    begin, end = f"<!-- {section}: begin -->", f"<!-- {section}: end -->"
    block = f"{begin}\n{text}{end}"
    old = path.read_text() if path.exists() else "# Performance\n"
    if begin in old or end in old:
        pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
        if len(pattern.findall(old)) != 1:
            raise Failure(f"{path.name} has not exactly one pair of markers for `{section}`")
        new = pattern.sub(lambda match: block, old)
    else:
        new = old.rstrip() + f"\n\n{block}\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(new)
