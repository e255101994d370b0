// What a script adds to blocks of code: a button that copies, and a stop of the Tab key where a block scrolls.
async function copyText(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const area = Object.assign(document.createElement("textarea"), { value: text }); // no clipboard where a page is neither https nor local
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  if (!done) throw new Error("not copied");
}

function addButton(block) {
  const box = block.closest(".highlight") ?? document.createElement("div");
  if (!box.contains(block)) { block.replaceWith(box); box.append(block); }
  box.classList.add("copyable");
  const button = Object.assign(document.createElement("button"), { type: "button", className: "copy", textContent: "Copy" });
  button.setAttribute("aria-label", "Copy this code");
  button.addEventListener("click", async () => {
    const text = block.textContent.replace(/\n$/, "");
    button.textContent = await copyText(text).then(() => "Copied", () => "Not copied");
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
  box.append(button);
}

function fit(block) {
  if (block.scrollWidth > block.clientWidth) block.tabIndex = 0;
  else block.removeAttribute("tabindex");
}

const fitted = new ResizeObserver((entries) => entries.forEach(({ target }) => fit(target)));

document.addEventListener("DOMContentLoaded", () => {
  const wide = document.querySelectorAll("main pre, main .scroll, main .cell-output");
  wide.forEach((block) => fitted.observe(block));
  document.querySelectorAll("main .highlight pre, #here pre, .card pre").forEach(addButton);
  wide.forEach(fit); // at once: an observer waits until the page is drawn
});
