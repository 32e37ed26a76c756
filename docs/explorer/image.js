// Images as the networks see them: Float32Array of SIZE * SIZE values in 0..1, row by row.

export const SIZE = 28;

/** An image turned by `degrees`, counter-clockwise, about its centre, then shifted; bilinear, black outside.
 *  The same arithmetic as tfinv.data.transforms. `from` is the point of the image that goes to the middle. */
export function transformed(image, { degrees, across, down, from = middle() }) {
  const radians = (degrees * Math.PI) / 180, half = (SIZE - 1) / 2, result = new Float32Array(SIZE * SIZE);
  const cos = Math.cos(radians), sin = Math.sin(radians);
  for (let row = 0; row < SIZE; row++) {
    for (let column = 0; column < SIZE; column++) {
      const x = column - half - across, y = row - half - down;
      result[row * SIZE + column] = read(image, cos * x - sin * y + from.x, sin * x + cos * y + from.y);
    }
  }
  return result;
}

function read(image, x, y) {
  const left = Math.floor(x), top = Math.floor(y), u = x - left, v = y - top;
  const at = (column, row) =>
    column < 0 || row < 0 || column >= SIZE || row >= SIZE ? 0 : image[row * SIZE + column];
  return (
    (1 - v) * ((1 - u) * at(left, top) + u * at(left + 1, top)) +
    v * ((1 - u) * at(left, top + 1) + u * at(left + 1, top + 1))
  );
}

export function middle() {
  return { x: (SIZE - 1) / 2, y: (SIZE - 1) / 2 };
}

/** Centre of mass, where MNIST has the middle of its images. */
export function centreOf(image) {
  let mass = 0, x = 0, y = 0;
  image.forEach((value, index) => {
    mass += value;
    x += value * (index % SIZE);
    y += value * Math.floor(index / SIZE);
  });
  return mass > 0 ? { x: x / mass, y: y / mass } : middle();
}

/** Adds to an image what a round brush leaves at a position, in pixels. */
export function brush(image, x, y) {
  for (let index = 0; index < image.length; index++) {
    const distance = Math.hypot((index % SIZE) - x, Math.floor(index / SIZE) - y);
    image[index] = Math.max(image[index], Math.min(1, Math.max(0, 1.9 - distance)));
  }
}

/** Paints an image on a canvas of any size. */
export function paint(canvas, image) {
  const small = new OffscreenCanvas(SIZE, SIZE), pixels = new ImageData(SIZE, SIZE);
  image.forEach((value, index) => {
    pixels.data.fill(Math.round(255 * Math.min(1, Math.max(0, value))), 4 * index, 4 * index + 3);
    pixels.data[4 * index + 3] = 255;
  });
  small.getContext("2d").putImageData(pixels, 0, 0);
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = false;
  context.drawImage(small, 0, 0, canvas.width, canvas.height);
}
