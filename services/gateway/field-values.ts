// Values of an app's custom fields in JSON. Clients send numbers and booleans where the services have texts.
import { z } from "zod";

/** An object of values by name, as texts; what is null is not given. */
export const fieldValues = z
  .record(z.string(), z.union([z.string(), z.number(), z.boolean(), z.null()]))
  .transform((values): Record<string, string> => {
    const given = Object.entries(values).filter(([, value]) => value !== null);
    return Object.fromEntries(given.map(([name, value]) => [name, String(value)]));
  });
