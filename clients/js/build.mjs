// Makes dist/: an ES module, a CommonJS module, their types, and says what it weighs.
import { execFileSync } from "node:child_process";
import { copyFileSync, readFileSync } from "node:fs";
import { gzipSync } from "node:zlib";
import { build } from "esbuild";

const LIMIT = 5_000;

for (const [format, outfile] of [["esm", "dist/index.js"], ["cjs", "dist/index.cjs"]]) {
  await build({ entryPoints: ["src/index.ts"], outfile, format, minify: true, bundle: true, target: "es2022" });
}
execFileSync("node", ["node_modules/typescript/bin/tsc"], { stdio: "inherit" });
copyFileSync("dist/index.d.ts", "dist/index.d.cts");
const bytes = gzipSync(readFileSync("dist/index.js"), { level: 9 }).length;
console.log(`${bytes} bytes gzipped`);
if (bytes > LIMIT) throw new Error(`more than ${LIMIT}`);
