// Prometheus' text format, and what can be computed from two scrapes of it.
const SAMPLE = /^([A-Za-z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)/;
const LABEL = /(\w+)="((?:[^"\\]|\\.)*)"/g;

// A list of { name, labels, value }.
export function samples(text) {
  return text.split("\n").filter(line => line && !line.startsWith("#")).map(line => line.match(SAMPLE)).filter(Boolean).map(([, name, labels, value]) => ({
    name,
    labels: Object.fromEntries([...(labels ?? "").matchAll(LABEL)].map(([, key, text]) => [key, text.replace(/\\(.)/g, (_, letter) => (letter === "n" ? "\n" : letter))])),
    value: value === "+Inf" ? Infinity : Number(value),
  }));
}

// One scrape, to be asked for sums by name and labels.
export class Scrape {
  constructor(text, at) {
    Object.assign(this, { at, list: samples(text) });
  }

  find(name, labels = {}) {
    return this.list.filter(each => each.name === name && Object.entries(labels).every(([key, value]) => each.labels[key] === value));
  }

  sum(name, labels) {
    return this.find(name, labels).reduce((total, each) => total + each.value, 0);
  }

  // Cumulative counts by upper bound, in order, over all other labels.
  buckets(name, labels) {
    const counts = new Map();
    for (const { labels: { le }, value } of this.find(`${name}_bucket`, labels)) {
      const bound = le === "+Inf" ? Infinity : Number(le);
      counts.set(bound, (counts.get(bound) ?? 0) + value);
    }
    return [...counts].sort(([one], [other]) => one - other);
  }
}

// What happened between two scrapes. A counter that fell belongs to a server that was started anew.
export class Window {
  constructor(before, after) {
    Object.assign(this, { before, after, seconds: Math.max(after.at - before.at, 1e-9) });
  }

  count(name, labels) {
    const after = this.after.sum(name, labels), before = this.before.sum(name, labels);
    return after < before ? after : after - before;
  }

  rate(name, labels) {
    return this.count(name, labels) / this.seconds;
  }

  buckets(name, labels) {
    const before = new Map(this.before.buckets(name, labels)), after = this.after.buckets(name, labels);
    const fell = after.some(([bound, count]) => count < (before.get(bound) ?? 0));
    return after.map(([bound, count]) => [bound, fell ? count : count - (before.get(bound) ?? 0)]);
  }

  quantile(share, name, labels) {
    return quantile(share, this.buckets(name, labels));
  }

  mean(name, labels) {
    return this.count(`${name}_sum`, labels) / this.count(`${name}_count`, labels);
  }
}

// As Prometheus' histogram_quantile: linear inside the bucket, the last finite bound beyond it.
export function quantile(share, buckets) {
  const total = buckets.at(-1)?.[1] ?? 0;
  if (!total) return NaN;
  const rank = share * total, at = buckets.findIndex(([, count]) => count >= rank);
  const [bound, count] = buckets[at], [low, below] = at ? buckets[at - 1] : [0, 0];
  if (bound === Infinity) return low;
  return low + (bound - low) * ((rank - below) / (count - below || 1));
}
