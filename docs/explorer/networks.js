// The networks of built/explorer.json, run by onnxruntime-web in this browser.

import * as ort from "./built/ort.wasm.min.mjs";
import { SIZE } from "./image.js";

ort.env.wasm.numThreads = 1; // more need headers that a plain file server does not send
ort.env.wasm.wasmPaths = new URL("./built/", import.meta.url).href;

/** Returns a function from {upright, seen, degrees} to what a network says: {probabilities, picture}. */
export async function open(network) {
  const session = await ort.InferenceSession.create(`built/${network.file}`);
  const tensor = (image) => new ort.Tensor("float32", image, [1, SIZE, SIZE, 1]);
  if (network.task === "generation") {
    return async ({ upright, degrees }) => {
      const parameter = new ort.Tensor("float32", Float32Array.of(degrees), [1]);
      const { transformed } = await session.run({ image: tensor(upright), parameter });
      return { picture: transformed.data };
    };
  }
  return async ({ seen }) => {
    const { probabilities, reconstruction } = await session.run({ images: tensor(seen) });
    return { probabilities: probabilities.data, picture: reconstruction?.data };
  };
}
