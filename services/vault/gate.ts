// What has to be so for the vault to serve: its keys are there (seal-state.ts), its audit can be written (audit-writer.ts).

/** One condition, watched over. */
export interface Gate {
  /** Throws what callers are told while it is closed; asks nobody. */
  requireOpen(): void;
  isOpen(): boolean;
  /** Calls the listener now, and whenever the gate opens or closes. */
  onChange(listener: (open: boolean) => void): void;
}

/** Open while all of them are; closed, it says what the first closed one says. */
export function gateOf(...gates: readonly Gate[]): Gate {
  const isOpen = () => gates.every((gate) => gate.isOpen());
  return {
    requireOpen() {
      for (const gate of gates) gate.requireOpen();
    },
    isOpen,
    onChange(listener) {
      for (const gate of gates) gate.onChange(() => listener(isOpen()));
    },
  };
}
