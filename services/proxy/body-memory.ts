// Lets go of the memory of bodies that were passed on. Their bytes lie outside of V8's heap and hang on small objects in its space
// for new ones, which V8 empties when the objects fill it, whatever hangs on them. In a space that is large enough for many requests
// at a time, so many bytes gather that V8 marks its whole heap instead, every 10 MB. So the space is emptied by the bytes.
const everyBytes = 4 * 1024 * 1024;

let passedBytes = 0;

/** Counts a piece of a body. Without effect where the process was started without `--expose-gc`. */
export function passedOn(piece: Buffer): void {
  passedBytes += piece.length;
  if (passedBytes < everyBytes) return;
  passedBytes = 0;
  globalThis.gc?.({ type: "minor" });
}
