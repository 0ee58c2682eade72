// Keeps what is made of an object for as long as the object lives: of a lease, for the thousands of requests that it serves.

/** Makes a value of each object once. */
export function oncePer<Thing extends object, Value extends object>(
  make: (thing: Thing) => Value,
): (thing: Thing) => Value {
  const made = new WeakMap<Thing, Value>();
  return (thing) => {
    const known = made.get(thing);
    if (known !== undefined) return known;
    const value = make(thing);
    made.set(thing, value);
    return value;
  };
}
