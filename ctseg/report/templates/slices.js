// The slices of a report: unpack, paint, flip through.
//
// The page holds its data as JSON, see `page_data` in ctseg/report/page.py:
//   names, colours   of the classes, background first
//   height, width    of every slice
//   sets             {name, truth, slices}; a slice has name, image (WebP), masks (zlib: truth, then prediction),
//                    known (ids of the classes examined), cells ([id, state, Dice]) and dice
//
// Nothing is ever read back from a canvas: browsers that guard against fingerprinting answer with noise.
"use strict";

const element = (id) => document.getElementById(id);
const {names, colours, height, width, sets} = JSON.parse(element("data").textContent);
const rgb = colours.map((hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)));
const GREY = [200, 200, 200];
const WHITE = [255, 255, 255];
const IGNORED = 255; // in a truth: nothing is said about the pixel
const STRIPE = Math.max(1, Math.round(width / 64)); // pixels

// ---- one slice

// The slice with its picture and both masks, unpacked when it is first looked at.
async function open(slice) {
  if (slice.ready) return slice;
  const packed = Uint8Array.from(atob(slice.masks), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  const masks = new Uint8Array(await new Response(stream).arrayBuffer());
  const picture = new Image();
  picture.src = "data:image/webp;base64," + slice.image;
  await picture.decode();
  slice.picture = picture;
  slice.truth = masks.subarray(0, height * width);
  slice.prediction = masks.subarray(height * width);
  slice.ready = true;
  return slice;
}

// The colour [r, g, b] of pixel i on one side ("truth" or "prediction"), or null. `only`: a class id, or 0 for all.
// A structure that is predicted but was not examined is striped: in its colour there, in grey on the side of the truth.
// Where the truth says that a pixel is to be ignored, its side is white, and a structure predicted there is striped too.
function colourOf(slice, known, side, i, only) {
  const predicted = slice.prediction[i];
  const ignored = slice.truth[i] == IGNORED;
  if (ignored && side == "truth") return only ? null : WHITE;
  const unknown = predicted && (ignored || (!slice.truth[i] && !known.has(predicted)));
  const shown = side == "prediction" || unknown ? predicted : slice.truth[i];
  if (!shown || (only && shown != only)) return null;
  if (!unknown) return rgb[shown];
  const diagonal = (i % width) + Math.floor(i / width);
  const striped = Math.floor(diagonal / STRIPE) % 3 == 0;
  if (!striped) return null;
  return side == "prediction" ? rgb[predicted] : GREY;
}

// Draw a slice onto a canvas: the picture, and the colours of one side over it with opacity `fade` (0 to 1).
function paint(canvas, slice, side, fade, only) {
  const layer = document.createElement("canvas");
  canvas.width = layer.width = width;
  canvas.height = layer.height = height;
  const pixels = new ImageData(width, height);
  const known = new Set(slice.known);
  for (let i = 0; i < height * width; i++) {
    const colour = colourOf(slice, known, side, i, only);
    if (colour) pixels.data.set([...colour, 255], 4 * i);
  }
  layer.getContext("2d").putImageData(pixels, 0, 0);
  const context = canvas.getContext("2d");
  context.globalAlpha = 1;
  context.drawImage(slice.picture, 0, 0, width, height);
  context.globalAlpha = fade;
  context.drawImage(layer, 0, 0);
}

// A line of the list below the panels: a structure, and what became of it on this slice.
function cellItem([id, state, dice]) {
  const words = {found: () => dice.toFixed(2), unknown: () => "not examined"};
  const item = document.createElement("li");
  const dot = document.createElement("span");
  dot.className = "dot";
  dot.style.setProperty("--c", colours[id]);
  item.append(dot, `${names[id]}: ${words[state] ? words[state]() : state}`);
  if (state == "missed" || state == "invented") item.className = "bad";
  return item;
}

// ---- what the reader chooses

let list = []; // the slices to flip through
let place = 0; // of the slice that is shown
let hidden = false; // is the overlay hidden?
let drawing = 0; // number of the last drawing that was begun

function choose() {
  const only = Number(element("only").value);
  const set = sets[Number(element("set").value)];
  list = set.slices.filter((s) => !only || s.cells.some(([id]) => id == only));
  if (element("order").value == "best") list.reverse();
  list.sort((a, b) => (a.dice == null) - (b.dice == null)); // what could not be scored comes last
  element("leftname").textContent = set.truth ? "truth" : "slice";
  element("place").max = Math.max(0, list.length - 1);
  show(0);
}

async function show(n) {
  place = Math.max(0, Math.min(n, list.length - 1));
  element("place").value = place;
  element("cells").replaceChildren();
  const ticket = ++drawing;
  const slice = list[place];
  if (!slice) {
    element("slice").textContent = "no slice has it";
    return;
  }
  await open(slice);
  if (ticket != drawing) return; // the reader has flipped on meanwhile
  const fade = hidden ? 0 : element("fade").value / 100;
  const only = Number(element("only").value);
  paint(element("left"), slice, "truth", fade, only);
  paint(element("right"), slice, "prediction", fade, only);
  const score = slice.dice == null ? "" : `: Dice ${slice.dice.toFixed(3)}`;
  element("slice").textContent = `${slice.name}, ${place + 1} of ${list.length}${score}`;
  element("cells").replaceChildren(...slice.cells.map(cellItem));
}

// ---- small pictures of the worst and the best

function endButton(slice, canvas) {
  const button = document.createElement("button");
  const dice = slice.dice.toFixed(2);
  button.append(canvas, dice);
  button.setAttribute("aria-label", `${slice.name}, Dice ${dice}`);
  button.addEventListener("click", () => {
    element("set").value = 0;
    element("only").value = 0;
    choose();
    show(list.indexOf(slice));
  });
  return button;
}

async function drawEnds() {
  const scored = sets[0].slices.filter((s) => s.dice != null); // worst first
  const few = scored.length < 10 ? scored : [...scored.slice(0, 5), ...scored.slice(-5)];
  await Promise.all(few.map(open));
  for (const slice of few) {
    const canvas = document.createElement("canvas");
    paint(canvas, slice, "prediction", 0.6, 0);
    element("ends").append(endButton(slice, canvas));
  }
}

// ---- start

const MOVES = {
  ArrowLeft: () => show(place - 1),
  ArrowRight: () => show(place + 1),
  Home: () => show(0),
  End: () => show(list.length - 1),
  " ": () => {
    hidden = !hidden;
    show(place);
  },
};

function onKey(event) {
  const ownKeys = /^(INPUT|SELECT|BUTTON|A)$/.test(event.target.tagName); // these use keys themselves
  const move = MOVES[event.key];
  if (!move || ownKeys || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  move();
}

function onFade() {
  hidden = false;
  show(place);
}

function start() {
  sets.forEach((set, i) => element("set").append(new Option(`${set.name} (${set.slices.length})`, i)));
  const ids = new Set(sets.flatMap((set) => set.slices.flatMap((s) => s.cells.map(([id]) => id))));
  for (const id of [...ids].sort((a, b) => a - b)) element("only").append(new Option(names[id], id));
  for (const id of ["set", "order", "only"]) element(id).addEventListener("change", choose);
  element("fade").addEventListener("input", onFade);
  element("place").addEventListener("input", () => show(Number(element("place").value)));
  element("back").addEventListener("click", () => show(place - 1));
  element("next").addEventListener("click", () => show(place + 1));
  document.addEventListener("keydown", onKey);
  choose();
  drawEnds();
}

start();
