// Judges the lock file: versions below a floor, and licences that are not on the list.

/** What is read of package-lock.json. */
export interface PackageLock {
  readonly packages: Readonly<Record<string, { readonly version?: string; readonly license?: string }>>;
}

/** Every installed copy of a package whose version lies below its floor, and every floor whose package is not there. */
export function versionFaults({ packages }: PackageLock, floors: Readonly<Record<string, string>>): readonly string[] {
  return Object.entries(floors).flatMap(([name, floor]) => {
    const copies = Object.entries(packages).filter(([path]) => path.endsWith(`node_modules/${name}`));
    if (copies.length === 0) return [`${name} is not in package-lock.json`];
    return copies.flatMap(([path, { version = "0" }]) =>
      below(version, floor) ? `${path} is ${version}: ${floor} at least` : [],
    );
  });
}

function below(version: string, floor: string): boolean {
  // A pre-release lies below its release.
  const [numbers = "", preRelease] = version.split("-");
  const parts = numbers.split(".").map(Number);
  for (const [index, least] of floor.split(".").map(Number).entries()) {
    const part = parts[index] ?? 0;
    if (part !== least) return part < least;
  }
  return preRelease !== undefined;
}

/** Every installed package whose licence is not allowed. */
export function licenceFaults({ packages }: PackageLock, allowed: ReadonlySet<string>): readonly string[] {
  return Object.entries(packages).flatMap(([path, { license }]) => {
    if (path === "" || (license !== undefined && isAllowed(license, allowed))) return [];
    return [`${path}: ${license ?? "no licence given"}`];
  });
}

/** `A OR B` needs one, `A AND B` needs all; nothing deeper occurs, and would be refused as an unknown name. */
function isAllowed(licence: string, allowed: ReadonlySet<string>): boolean {
  const names = licence.replace(/^\((.*)\)$/, "$1");
  return names.split(" OR ").some((choice) => choice.split(" AND ").every((name) => allowed.has(name)));
}
