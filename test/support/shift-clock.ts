// Preloaded into a process whose clock is to be wrong: every reading of it is so many hours off. Timers are not.
const shiftMs = Number(process.env.TEST_CLOCK_SHIFT_HOURS) * 3_600_000;
const TrueDate = Date;

globalThis.Date = class extends TrueDate {
  constructor(...given: [] | [number | string | Date]) {
    if (given.length === 0) super(TrueDate.now() + shiftMs);
    else super(...given);
  }

  static override now(): number {
    return TrueDate.now() + shiftMs;
  }
} as DateConstructor;
