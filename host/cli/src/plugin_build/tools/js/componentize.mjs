// Makes a component of a plugin in JavaScript: node componentize.mjs SOURCE ROOT WIT WORLD COMPONENT
import { readFile, writeFile } from "node:fs/promises";
import process from "node:process";
import { componentize } from "componentize-qjs";

const [source, root, wit, world, component] = process.argv.slice(2);
try {
  const prelude = await readFile(new URL("prelude.js", import.meta.url), "utf8");
  // In one line with the plugin's first, so that the lines of its errors are those of its file.
  const inOneLine = prelude.replaceAll(/^ *\/\/.*$/gm, "").replaceAll(/\s*\n\s*/g, " ");
  const made = await componentize({
    jsSource: inOneLine + (await readFile(source, "utf8")),
    jsPath: source,
    moduleRoot: root,
    witPath: wit,
    world,
    // The contract's functions are plain ones, and the smaller engine compiles sooner.
    sync: true,
    optSize: true,
  });
  await writeFile(component, made.component);
} catch (error) {
  process.stderr.write(`${error.message ?? error}\n`);
  process.exitCode = 1;
}
