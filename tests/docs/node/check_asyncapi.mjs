// Prints what AsyncAPI's own parser objects to in the document on standard input: errors and warnings.
import { readFileSync } from "node:fs";
import { Parser } from "@asyncapi/parser";

const WARNING = 1;
const { diagnostics } = await new Parser().parse(readFileSync(0, "utf8"));
for (const { severity, path, message } of diagnostics) {
  if (severity <= WARNING) console.log(`${path.join(".")}: ${message}`);
}
