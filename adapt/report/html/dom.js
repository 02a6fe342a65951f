"use strict";
// Elements, numbers as text, and colours. Whatever comes from a run enters the page as a text node, never as HTML.

const SVG = "http://www.w3.org/2000/svg";

/** Make an element: attributes by name (functions are listeners), and children, of which strings become text. */
function make(name, attributes = {}, ...children) {
  const inSvg = ["svg", "path", "line", "rect", "text", "title"].includes(name);
  const element = inSvg ? document.createElementNS(SVG, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(key, value);
    else if (value === true) element.setAttribute(key, "");
    else if (value !== false && value != null) element.setAttribute(key, value);
  }
  element.append(...children.flat(Infinity).filter((child) => child != null));
  return element;
}

/** Make an element and set its style, which the content security policy allows to scripts only. */
function styled(element, style) {
  for (const [name, value] of Object.entries(style)) element.style.setProperty(name, value);
  return element;
}

const UNKNOWN = "–";
const known = (show) => (value) => (value == null ? UNKNOWN : typeof value === "string" ? value : show(value));
// Made once: a formatter of its own for each cell would take most of the time in which the page opens.
const formatters = [0, 1, 2].map(
  (digits) => new Intl.NumberFormat("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits }),
);
const grouped = (value, digits = 0) => formatters[digits].format(value);

const whole = known((value) => grouped(value));
const decimal = known((value) => grouped(value, 2));
const percent = known((value) => `${(100 * value).toFixed(1)} %`);
const times = known((value) => `${value >= 100 ? grouped(value) : value.toPrecision(3)}×`);
const short = known((value) => {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size < 1e5 && size >= 1e-3) return String(Number(value.toPrecision(4)));
  return Number(value.toPrecision(3)).toExponential().replace("+", "");
});
/** Bits: all digits of a mean that is not whole. */
const bits = known((value) => (Number.isInteger(value) ? String(value) : value.toFixed(2)));
const format = (word, fraction) => (word === 32 && fraction === 0 ? "float32" : `⟨${word}, ${fraction}⟩`);

/** A step for an axis: 500, 20k, 1.5M. */
function compact(value) {
  const [unit, name] = Math.abs(value) >= 1e6 ? [1e6, "M"] : Math.abs(value) >= 1e4 ? [1e3, "k"] : [1, ""];
  return `${Number((value / unit).toPrecision(6))}${name}`;
}

/** Round numbers from low to high, about as many as asked for. */
function ticks(low, high, count) {
  const raw = (high - low) / Math.max(count, 1) || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= raw * 0.999);
  const found = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k++)
    found.push(Number((k * step).toPrecision(12)));
  return found;
}

/**
 * The names as labels: without a ".weight" that all have, and with the words of a long one cut to equal lengths, so that
 * "encoder.layers.11.attention.output" stays apart from layer 12.
 */
function labels(names) {
  const all = names.every((name) => name.endsWith(".weight") && name.length > 7);
  const longest = window.matchMedia("(max-width: 40rem)").matches ? 17 : 36;
  return names.map((name) => cut(all ? name.slice(0, -7) : name, longest));
}

function cut(name, longest) {
  const words = name.split(".");
  for (let letters = longest; letters > 0 && name.length > longest; letters--) {
    name = words.map((word) => (/^\d+$/.test(word) ? word : word.slice(0, letters))).join(".");
  }
  return name.length > longest ? `${name.slice(0, longest - 1)}…` : name;
}

/** Numbers 0 to 255 [layers][steps] from base64. */
function unpacked(text, layers) {
  const all = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const width = all.length / layers;
  return Array.from({ length: layers }, (_, layer) => all.subarray(layer * width, (layer + 1) * width));
}

// Viridis at nine places: from pale yellow (few) to dark violet (many), with a lightness that falls evenly, so that it
// reads in grey and with every kind of colour blindness.
const VIRIDIS = ["fde725", "addc30", "5ec962", "28ae80", "21918c", "2c728e", "3b528b", "472d7b", "440154"].map((hex) =>
  [0, 2, 4].map((place) => parseInt(hex.slice(place, place + 2), 16)),
);

/** The colour of a share from 0 to 1, and that of text on it. */
function colour(share) {
  const place = Math.min(Math.max(share, 0), 1) * (VIRIDIS.length - 1);
  const below = Math.min(Math.floor(place), VIRIDIS.length - 2);
  const mixed = VIRIDIS[below].map((from, i) => Math.round(from + (place - below) * (VIRIDIS[below + 1][i] - from)));
  const light = 0.2126 * mixed[0] + 0.7152 * mixed[1] + 0.0722 * mixed[2] > 118;
  return { fill: `rgb(${mixed.join(" ")})`, ink: light ? "#12181f" : "#ffffff" };
}

/** Return the scale from numbers to shares; by ratios if logarithmic: 4 to 8 bits is as far as 8 to 16. */
function scale(values, logarithmic) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const at = logarithmic ? Math.log : Number;
  return (value) => (high > low ? (at(value) - at(low)) / (at(high) - at(low)) : 0.5);
}
