// What a picture says about itself: the JSON that the server wrote into its PNG text or EXIF.
import { parse } from "./numbers.js";

const latin = new TextDecoder("latin1");
const IMAGE_DESCRIPTION = 0x010e, ASCII = 2;

export async function settingsOf(file) {
  const view = new DataView(await file.arrayBuffer());
  const text = fromPng(view) ?? fromJpeg(view) ?? fromWebp(view);
  if (!text) throw new Error(`${file.name} does not say how it was made. Expected a picture that this server, or one like it, has drawn.`);
  return checked(text, file.name);
}

function checked(text, name) {
  let made;
  try {
    made = parse(text);
  } catch { // a description that somebody else wrote
    throw new Error(`${name} carries a description, but not one that fewstep wrote.`);
  }
  const complete = made && typeof made.prompt === "string" && /^\d+$/.test(made.seed) && Number.isInteger(made.steps) && Array.isArray(made.size);
  if (!complete) throw new Error(`${name} carries a description, but not one that fewstep wrote.`);
  return { ...made, size: made.size.join("x") };
}

const ascii = (view, at, length) => latin.decode(new Uint8Array(view.buffer, at, Math.max(0, Math.min(length, view.byteLength - at))));

export function fromPng(view) {
  if (view.byteLength < 20 || view.getUint32(0) !== 0x89504e47) return null;
  for (let at = 8; at + 8 <= view.byteLength; at += 12 + view.getUint32(at)) {
    const length = view.getUint32(at);
    if (ascii(view, at + 4, 4) !== "tEXt") continue;
    const [keyword, text] = ascii(view, at + 8, length).split("\0");
    if (keyword === "fewstep") return text;
  }
  return null;
}

export function fromJpeg(view) {
  if (view.byteLength < 4 || view.getUint16(0) !== 0xffd8) return null;
  for (let at = 2; at + 4 <= view.byteLength && view.getUint16(at) >= 0xffc0; at += 2 + view.getUint16(at + 2))
    if (view.getUint16(at) === 0xffe1 && ascii(view, at + 4, 6) === "Exif\0\0") return fromExif(view, at + 10);
  return null;
}

export function fromWebp(view) {
  if (ascii(view, 0, 4) !== "RIFF" || ascii(view, 8, 4) !== "WEBP") return null;
  for (let at = 12; at + 8 <= view.byteLength; at += 8 + ((view.getUint32(at + 4, true) + 1) & ~1))
    if (ascii(view, at, 4) === "EXIF") return fromExif(view, at + 8 + (ascii(view, at + 8, 6) === "Exif\0\0" ? 6 : 0));
  return null;
}

// The image description in the first directory of a TIFF header.
function fromExif(view, start) {
  if (start + 8 > view.byteLength) return null;
  const little = view.getUint16(start) === 0x4949, directory = start + view.getUint32(start + 4, little);
  if (directory + 2 > view.byteLength) return null;
  for (let entry = 0; entry < view.getUint16(directory, little); entry += 1) {
    const at = directory + 2 + 12 * entry;
    if (at + 12 > view.byteLength) return null;
    if (view.getUint16(at, little) !== IMAGE_DESCRIPTION || view.getUint16(at + 2, little) !== ASCII) continue;
    return ascii(view, start + view.getUint32(at + 8, little), view.getUint32(at + 4, little)).replace(/\0+$/, "");
  }
  return null;
}
