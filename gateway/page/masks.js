// Masks as this server sends them: COCO's compressed run lengths, column by column.

/** The runs of a mask: a flat list of start, end (exclusive), as places in column-major order. */
export function runs(counts) {
  const found = [], lengths = [];
  let place = 0, at = 0;
  while (at < counts.length) {
    let value = 0, shift = 0, more = true;
    while (more && at < counts.length) {
      const bits = counts.charCodeAt(at++) - 48;
      value += (bits & 31) * 2 ** shift;
      more = (bits & 32) !== 0;
      shift += 5;
      if (!more && bits & 16) value -= 2 ** shift;
    }
    if (lengths.length > 2) value += lengths[lengths.length - 2];
    lengths.push(value);
    if (lengths.length % 2 === 0 && value > 0) found.push(place, place + value);
    place += value;
  }
  return found;
}

/** How many pixels two lists of runs have in common. */
export function common(one, other) {
  let pixels = 0, i = 0, j = 0;
  while (i < one.length && j < other.length) {
    const start = Math.max(one[i], other[j]), end = Math.min(one[i + 1], other[j + 1]);
    if (end > start) pixels += end - start;
    if (one[i + 1] < other[j + 1]) i += 2; else j += 2;
  }
  return pixels;
}

export function area(list) {
  let pixels = 0;
  for (let i = 0; i < list.length; i += 2) pixels += list[i + 1] - list[i];
  return pixels;
}

/** Set a bit of a Uint8Array [width * height], column-major, wherever the runs are. */
export function mark(pixels, list, bit) {
  for (let i = 0; i < list.length; i += 2) for (let place = list[i]; place < list[i + 1]; place++) pixels[place] |= bit;
}

/**
 * Paint what a column-major map holds into a new canvas, as large as it is shown.
 * box: x1, y1, x2, y2 of the map in pixels of the picture; colors: by value, [red, green, blue, alpha].
 */
export function painted(map, box, scale, colors) {
  const [x1, y1, x2, y2] = box, rows = y2 - y1;
  const width = Math.max(1, Math.round((x2 - x1) * scale)), height = Math.max(1, Math.round(rows * scale));
  const canvas = new OffscreenCanvas(width, height), context = canvas.getContext("2d");
  const image = context.createImageData(width, height), out = image.data;
  for (let x = 0; x < width; x++) {
    const column = Math.min(x2 - x1 - 1, Math.floor((x + 0.5) / scale)) * rows;
    for (let y = 0; y < height; y++) {
      const color = colors[map[column + Math.min(rows - 1, Math.floor((y + 0.5) / scale))]];
      if (color) out.set(color, 4 * (y * width + x));
    }
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

/** A mask cut to its box: what painted() takes. */
export function cut(list, height, box) {
  const [x1, y1, x2, y2] = box, rows = y2 - y1, map = new Uint8Array(Math.max(0, (x2 - x1) * rows));
  for (let i = 0; i < list.length; i += 2) {
    for (let start = list[i]; start < list[i + 1];) {
      const column = Math.floor(start / height), end = Math.min(list[i + 1], (column + 1) * height);
      if (column >= x1 && column < x2) {
        const low = Math.max(start - column * height, y1), high = Math.min(end - column * height, y2);
        if (high > low) map.fill(1, (column - x1) * rows + low - y1, (column - x1) * rows + high - y1);
      }
      start = end;
    }
  }
  return map;
}

/** Match detections of two answers: greedily by the overlap of their masks, within a class. */
export function matched(one, other) {
  const pairs = [];
  one.forEach((a, i) => other.forEach((b, j) => {
    if (a.class_id !== b.class_id) return;
    const shared = common(a.runs, b.runs);
    if (shared) pairs.push({ i, j, iou: shared / (a.area + b.area - shared) });
  }));
  pairs.sort((a, b) => b.iou - a.iou);
  const left = new Set(), right = new Set();
  return pairs.filter(({ i, j, iou }) => {
    if (iou < 0.5 || left.has(i) || right.has(j)) return false;
    left.add(i); right.add(j);
    return true;
  });
}
