// Steps through the samples of a training that stand beside it as JSON. Every text becomes a text node, never markup.
'use strict';
const found = id => document.getElementById(id);
const records = JSON.parse(found('rollouts').textContent);
// Samples of a method that pays several roles have no one reward; the page then has no choice of order.
const paid = found('order') !== null;
const reward = record => (paid ? record.scores.reward : 0);
const orders = {
  step: (a, b) => a.step - b.step || reward(a) - reward(b),
  best: (a, b) => reward(b) - reward(a) || a.step - b.step,
  worst: (a, b) => reward(a) - reward(b) || a.step - b.step,
};
let shown = [];

function put(parent, tag, name, text) {
  const node = parent.appendChild(document.createElement(tag));
  node.className = name;
  if (text !== undefined) node.textContent = text;
  return node;
}

function choose() {
  const only = found('only').value;
  shown = records.filter(each => only === '' || String(each.step + 1) === only).sort(orders[paid ? found('order').value : 'step']);
  found('place').max = shown.length - 1;
  go(0);
}

function go(place) {
  place = Math.max(0, Math.min(shown.length - 1, place));
  const record = shown[place];
  found('place').value = place;
  found('back').disabled = place === 0;
  found('on').disabled = place === shown.length - 1;
  const scores = Object.entries(record.scores || {}).map(([name, value]) => `${name} ${Number(value).toFixed(2)}`);
  const parts = [`step ${record.step + 1}`, record.round && `turn ${record.round}`];
  found('where').textContent = `${place + 1} of ${shown.length}: ${parts.filter(Boolean).join(', ')}`;
  const dialogue = found('dialogue');
  dialogue.replaceChildren();
  put(dialogue, 'p', 'soft', [record.person, ...record.facts].join(' · '));
  for (const turn of record.turns) {
    const box = put(dialogue, 'div', turn.role === 'assistant' ? 'turn assistant' : 'turn user');
    if (turn.profile) put(box, 'span', 'profile', turn.profile);
    box.appendChild(document.createTextNode(turn.content.trim() || turn.profile ? turn.content : '(only white space)'));
  }
  put(dialogue, 'p', 'soft', record.judged === false ? 'not judged' : scores.join(' · '));
}

for (const step of new Set(records.map(each => each.step))) put(found('only'), 'option', '', String(step + 1));
if (paid) found('order').addEventListener('change', choose);
found('only').addEventListener('change', choose);
found('place').addEventListener('input', () => go(Number(found('place').value)));
found('back').addEventListener('click', () => go(Number(found('place').value) - 1));
found('on').addEventListener('click', () => go(Number(found('place').value) + 1));
choose();
