// Reads a JSON list of custom resources from the file that is named, and says what is wrong with them: by their schemas,
// and by their types, which know no other fields than the schemas have. The schemas alone would let a misspelt one pass,
// as the API server does, which then drops it.
import { readFileSync, writeFileSync } from "node:fs";
import ts from "typescript";
import * as gateway from "@kubernetes-models/gateway-api/gateway.networking.k8s.io/v1";
import * as keda from "@kubernetes-models/keda/keda.sh/v1alpha1";
import * as prometheus from "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1";

const groups = {
  "gateway.networking.k8s.io/v1": ["gateway-api", gateway],
  "keda.sh/v1alpha1": ["keda", keda],
  "monitoring.coreos.com/v1": ["prometheus-operator", prometheus],
};

const program = [];
for (const { apiVersion, kind, ...body } of JSON.parse(readFileSync(process.argv[2], "utf8"))) {
  const [module, models] = groups[apiVersion] ?? [];
  const Model = models?.[kind];
  const name = `${kind} ${body.metadata?.name}`;
  if (Model === undefined) {
    console.log(`${name}: there is no schema for ${apiVersion}`);
    continue;
  }
  try {
    new Model(body).validate();
  } catch (error) {
    console.log(`${name}: ${error.message}`);
  }
  const path = `@kubernetes-models/${module}/${apiVersion}`;
  program.push(`new (await import("${path}")).${kind}(${JSON.stringify(body, null, 1)});`);
}

const file = `${import.meta.dirname}/objects.ts`;
writeFileSync(file, `${program.join("\n")}\nexport {};\n`);
const options = {
  strict: true,
  noEmit: true,
  skipLibCheck: true,
  target: ts.ScriptTarget.ES2022,
  module: ts.ModuleKind.ESNext,
  moduleResolution: ts.ModuleResolutionKind.Bundler,
  types: [],
};
for (const { messageText, start } of ts.getPreEmitDiagnostics(ts.createProgram([file], options))) {
  const line = start === undefined ? "" : readFileSync(file, "utf8").slice(start).split("\n", 1)[0];
  console.log(`${ts.flattenDiagnosticMessageText(messageText, "; ")}: ${line}`);
}
